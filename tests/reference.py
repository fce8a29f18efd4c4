"""The oracle: transformers' SAM 2 video model with random weights, as it is and mended.

Knows nothing of our model. Scripts are in `script.py`, those that both must play alike in
`scenarios.py`.
"""

import zlib
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from script import Add, Propagate, Run, Side
from torch import Tensor, nn
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoInferenceSession,
    Sam2VideoModel,
)
from transformers.models.sam2_video.processing_sam2_video import Sam2VideoProcessor

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3) RGB

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def tiny_hf_config(
    image_size: int = 128, stability_delta: float = 0.05, **changes: Any
) -> Sam2VideoConfig:
    """transformers' configuration of a SAM 2.1 of half a million weights.

    Memories keep 64 channels, which transformers has hard-coded; pointers are two tokens of 64.
    Windows of 14 and 7 on grids of 8 and 4 make the padded-window path run.
    """
    width, grid = 128, image_size // 4
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [image_size, image_size],
        "blocks_per_stage": [1, 2, 3, 2],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "global_attention_blocks": [4],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[grid, grid], [grid // 2] * 2, [grid // 4] * 2],
        "fpn_hidden_size": width,
    }
    values: dict[str, Any] = {
        "image_size": image_size,
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": width, "image_size": image_size},
        "mask_decoder_config": {
            "hidden_size": width,
            "mlp_dim": 2 * width,
            "iou_head_hidden_dim": width,
            "dynamic_multimask_stability_delta": stability_delta,
        },
        "memory_attention_hidden_size": width,
        "memory_attention_feed_forward_hidden_size": 2 * width,
        "memory_attention_rope_feat_sizes": [grid // 4, grid // 4],
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 2 * width,
    }
    return Sam2VideoConfig(**{**values, **changes})


# A random recurrent network is often chaotic. With seed 60 objects stay apart through memory, and
# yet a change of 1e-6 in the pixels stays below 5e-5 of the logits over 20 frames.
CALM_SEED = 60


@cache
def small_hf_model(flickers: bool = False, **changes: Any) -> Sam2VideoModel:
    """The model of the tests: `tiny_hf_config` with these changes, random weights."""
    return random_hf_model(tiny_hf_config(**changes), flickers=flickers)


def random_hf_model(
    config: Sam2VideoConfig, seed: int = CALM_SEED, flickers: bool = False
) -> Sam2VideoModel:
    """transformers' model in which every weight matters, also those that start as zero.

    flickers: object scores of tracked frames fall on both sides of 0; else objects are present
    in every frame.
    """
    torch.set_num_threads(1)  # tensors so small lose more to handing over than they gain
    model = Sam2VideoModel(config).eval().requires_grad_(False)
    _fill(model, seed)
    head = model.mask_decoder.pred_obj_score_head.proj_out
    head.bias.fill_(50.0)
    if flickers:
        prompted, tracked = _scores_around(model, 50.0)
        # Stretched about the middle of the tracked ones, prompted frames on the present side.
        gain = torch.sign(prompted.mean() - tracked.mean()) * 2 / tracked.std()
        head.weight.mul_(gain)
        head.bias.copy_(-gain * tracked.quantile(0.3))
    return model


def _fill(model: nn.Module, seed: int) -> None:
    """Random values of useful size for all parameters, and one Fourier matrix for both uses.

    Each weight is drawn by its own name, so that a change of configuration leaves the others.
    """
    generator = torch.Generator()

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for name, value in model.named_parameters():
        generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        kind = name.rpartition(".")[2]
        if kind == "scale":  # of residual branches; 1e-6 in a fresh model
            value.copy_(0.3 + 0.1 * noise(value))
        elif "layer_norm" in name and kind == "weight":
            value.copy_(1 + 0.2 * noise(value))
        elif kind == "bias":
            value.copy_(0.1 * noise(value))
        elif kind != "weight" or name.endswith(("embed.weight", "token.weight", "tokens.weight")):
            value.copy_(0.5 * noise(value))
        else:
            fan_in = value.shape[0] if "upscale_conv" in name else value[0].numel()
            value.copy_(noise(value) * fan_in**-0.5)
        if name.endswith("cross_attn_image.o_proj.weight"):
            value.mul_(2)  # so that memories move the logits
        if "hypernetworks" in name and name.endswith("proj_out.weight"):
            value.mul_(3)  # logits of a trained model's size, some stable and some not
    matrix = noise(model.get_buffer("shared_image_embedding.positional_embedding"))
    model.get_buffer("shared_image_embedding.positional_embedding").copy_(matrix)
    model.get_buffer("prompt_encoder.shared_embedding.positional_embedding").copy_(matrix)


def _scores_around(model: Sam2VideoModel, middle: float) -> tuple[Tensor, Tensor]:
    """Object scores less `middle` of two objects: where they are clicked, and 15 frames on."""
    clicks = Add(0, [1, 2], points=[[(40, 30)], [(110, 58)]], signs=[[1], [1]])
    emissions = hf_side(model, synthetic_frames(16)).play([clicks, Run(0), Propagate(start=1)])
    scores = torch.tensor([list(e.scores.values()) for e in emissions]) - middle
    return scores[0], scores[1:]


def synthetic_frames(count: int, height: int = 96, width: int = 160, seed: int = 0) -> Frames:
    """Two discs moving over blocks of random colour, with noise."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 150, (height // 8 + 1, width // 8 + 1, 3))
    background = np.kron(blocks, np.ones((8, 8, 1)))[:height, :width]
    rows, columns = np.mgrid[:height, :width]
    discs = (
        ((255, 30, 60), (0.25, 0.03), (0.30, 0.02), 0.15),
        ((20, 200, 250), (0.70, -0.02), (0.60, 0.01), 0.20),
    )
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        frame = background + random.normal(0, 8, background.shape)
        for colour, (x, dx), (y, dy), radius in discs:
            centre = (x + dx * t) % 1 * width, (y + dy * t) % 1 * height
            inside = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2
            frame[inside < (radius * min(height, width)) ** 2] = colour
        frames[t] = frame.clip(0, 255)
    return frames


def pixel_values(frames: Frames, size: int) -> Tensor:
    """Frames as transformers' processors make them with torchvision: (T, 3, size, size) fp32.

    Bilinear with antialiasing on bytes, then ImageNet's mean and deviation.
    """
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    mean = 255 * torch.tensor(IMAGENET_MEAN)[:, None, None]
    deviation = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    return (images.float() - mean) / deviation


def hf_processor(size: int) -> Sam2VideoProcessor:
    """transformers' processor for prompts only: its image half needs torchvision."""
    processor = object.__new__(Sam2VideoProcessor)
    processor.target_size, processor.point_pad_value = size, -10
    return processor


def hf_side(model: Sam2VideoModel, frames: Frames, *, streaming: bool = False) -> Side:
    """transformers, with a session on these frames."""
    size = model.config.image_size
    height, width = frames.shape[1:3]
    pixels = pixel_values(frames, size)
    session = Sam2VideoInferenceSession(
        video=None if streaming else pixels,
        video_height=None if streaming else height,
        video_width=None if streaming else width,
        dtype=torch.float32,
    )
    return Side(model, hf_processor(size), session, pixels, (height, width))


class MendedHfModel(Sam2VideoModel):
    """transformers' layers without two defects of its bookkeeping: an oracle for corrections.

    Each object's memory is encoded by its own kind of mask, and a prompted frame is a
    conditioning frame even if it had been tracked. Prompts must be run before they are propagated.
    """

    def forward(self, inference_session: Any, frame_idx: int | None = None, **kwargs: Any) -> Any:
        if frame_idx is None:
            return super().forward(inference_session, **kwargs)
        corrected = [
            inference_session.output_dict_per_obj[index]
            for index in map(inference_session.obj_id_to_idx, inference_session.obj_with_new_inputs)
            if frame_idx in inference_session.frames_tracked_per_obj[index]
            and (
                frame_idx in inference_session.point_inputs_per_obj[index]
                or frame_idx in inference_session.mask_inputs_per_obj[index]
            )
        ]
        for outputs in corrected:  # a frame is no memory of its own while it is corrected
            _move(frame_idx, outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"])
        output = super().forward(inference_session, frame_idx=frame_idx, **kwargs)
        for outputs in corrected:
            _move(frame_idx, outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"])
        return output

    def _batch_encode_memories(
        self,
        inference_session: Any,
        frame_idx: int,
        objects_needing_memory_encoding: list[int],
        *per_object: list[Any],
        **named: list[Any],
    ) -> None:
        for i in range(len(objects_needing_memory_encoding)):
            super()._batch_encode_memories(
                inference_session,
                frame_idx,
                objects_needing_memory_encoding[i : i + 1],
                *(values[i : i + 1] for values in per_object),
                **{name: values[i : i + 1] for name, values in named.items()},
            )


def _move(frame: int, source: dict[int, Any], target: dict[int, Any]) -> None:
    """Move the entry of one frame, if there is one."""
    if frame in source:
        target[frame] = source.pop(frame)


class LabellingHfModel(MendedHfModel):
    """transformers' layers run as Meta's predictor runs them on clicks and masks.

    A further click sees the mask it corrects; a given mask gets the single-mask token's pointer
    and is remembered from its low-resolution logits.
    """

    def _run_single_frame_inference(self, *, point_inputs: Any, **kwargs: Any) -> Any:
        session, index = kwargs["inference_session"], kwargs["obj_idx"]
        if point_inputs is not None:
            for conditioning in (True, False):
                before = session.get_output(index, kwargs["frame_idx"], "pred_masks", conditioning)
                if before is not None:
                    kwargs["prev_sam_mask_logits"] = before.clamp(-32, 32)
                    break
        return super()._run_single_frame_inference(point_inputs=point_inputs, **kwargs)

    def _use_mask_as_output(self, *args: Any, **kwargs: Any) -> Any:
        decode = self._single_frame_forward
        self._single_frame_forward = partial(decode, multimask_output=False)
        try:
            output = super()._use_mask_as_output(*args, **kwargs)
        finally:
            del self._single_frame_forward
        size = (self.image_size, self.image_size)
        output.high_res_masks = F.interpolate(output.pred_masks, size, mode="bilinear")
        return output


def rebuilt_as(cls: type[Sam2VideoModel], model: Sam2VideoModel) -> Sam2VideoModel:
    """The same weights under another class."""
    twin = cls(model.config).eval().requires_grad_(False)
    twin.load_state_dict(model.state_dict())
    return twin
