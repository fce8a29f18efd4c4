"""A model of a few thousand weights that runs a frame in milliseconds. Knows no other library.

`tests/reference.py` has the model that transformers can read; this one is for the many tests that
compare ours with a computation written out beside them, and for those that run hundreds of frames.
"""

import zlib
from typing import Any

import torch
from torch import Tensor

from sam2model.configuration import Sam2VideoConfig
from sam2model.memory_bank import Readout
from sam2model.track_step import ImageFeatures, Sam2Network, StepOutput

SIZE, GRID, WIDTH, MEMORY = 64, 4, 32, 16  # image px, coarse cells a side, channels, of memory
PLACES = GRID * GRID


def small_config(**changes: Any) -> Sam2VideoConfig:
    """A SAM 2.1 for images of 64 px; stages 3 and 4 have windows larger than their maps."""
    values: dict[str, Any] = {
        "image_size": SIZE,
        "vision_config": {
            "backbone_config": {
                "hidden_size": 8,
                "image_size": [SIZE, SIZE],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[4 * GRID] * 2, [2 * GRID] * 2, [GRID] * 2],
            "fpn_hidden_size": WIDTH,
        },
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": SIZE},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": 2 * WIDTH,
            "iou_head_hidden_dim": WIDTH,
            "num_attention_heads": 4,
        },
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 2 * WIDTH,
        "memory_attention_rope_feat_sizes": [GRID, GRID],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": MEMORY,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 2 * WIDTH,
    }
    return Sam2VideoConfig.from_dict({**values, **changes})


def small_network(seed: int = 0, network: type[Sam2Network] = Sam2Network, **changes: Any) -> Any:
    """A network of `small_config` in evaluation, every weight random and none without effect."""
    torch.set_num_threads(1)  # tensors so small lose more to handing over than they gain
    built = network(small_config(**changes)).eval().requires_grad_(False)
    randomise(built, seed)
    return built


def randomise(network: Sam2Network, seed: int) -> None:
    """Values of useful size, each drawn by its own name; objects are mostly in the frame."""
    generator = torch.Generator()
    values = dict(network.named_parameters())
    values["shared_image_embedding"] = network.shared_image_embedding.positional_embedding
    for name, value in values.items():
        generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(value.shape, generator=generator)
        fan_in = value.shape[0] if "upscale_conv" in name else value[0].numel()
        if "layer_norm" in name and name.endswith("weight"):
            value.copy_(1 + 0.2 * noise)
        elif name.endswith("scale"):
            value.copy_(0.3 + 0.1 * noise)
        elif name.endswith("bias"):
            value.copy_(0.1 * noise)
        elif value.dim() > 1 and name.endswith("weight") and "embed." not in name:
            value.copy_(noise * fan_in**-0.5)
        else:
            value.copy_(0.5 * noise)
        if "hypernetworks" in name and name.endswith("proj_out.weight"):
            value.mul_(3)
    encoding = network.prompt_encoder.shared_embedding.positional_embedding
    encoding.copy_(network.shared_image_embedding.positional_embedding)
    network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(4.0)
    network.eval()  # forget what was folded from other weights


def random_pixels(count: int, seed: int = 0) -> Tensor:
    """Normalised frames (count, 3, S, S) of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 3, SIZE, SIZE), generator=generator)


def random_readout(
    count: int, frames: int, pointers: list[int] | None = None, seed: int = 0
) -> Readout:
    """Memories of `count` objects with `frames` frames each and so many pointers."""
    generator = torch.Generator().manual_seed(seed)
    held = pointers or [3] * count
    most = max(1, *held)
    valid = torch.tensor([[i < n for i in range(most)] for n in held])
    rows = torch.stack([torch.randperm(7, generator=generator)[:frames] for _ in range(count)])
    return Readout(
        masks=torch.randn((count, frames, PLACES, MEMORY), generator=generator).bfloat16(),
        time_rows=rows,
        pointers=torch.randn((count, most, WIDTH), generator=generator),
        pointer_offsets=torch.rand((count, most), generator=generator) * valid,
        pointer_valid=valid,
    )


def readout_rows(memory: Readout, index: list[int]) -> Readout:
    """The memories of some objects, with no more places for pointers than one of them has."""
    most = max(1, int(memory.pointer_valid[index].sum(1).max()))
    return Readout(
        memory.masks[index],
        memory.time_rows[index],
        memory.pointers[index, :most],
        memory.pointer_offsets[index, :most],
        memory.pointer_valid[index, :most],
    )


def largest_difference(a: ImageFeatures | StepOutput, b: ImageFeatures | StepOutput) -> float:
    """max |a - b| over all tensors, each relative to the largest value of b's."""
    worst = 0.0
    for name in type(b).__slots__:
        got, wanted = getattr(a, name), getattr(b, name)
        assert got.shape == wanted.shape, name
        worst = max(worst, float((got - wanted).abs().max() / wanted.abs().max()))
    return worst
