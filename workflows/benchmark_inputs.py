"""What benchmarks run on: two discs that pass one another, and a small model with random weights.

Knows nothing of what is measured.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam2model import (
    Prompt,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)
from sam2model.video_writer import write_video

Picture = npt.NDArray[np.uint8]  # (H, W, 3)

IMAGE_SIZE = 256
HEIGHT, WIDTH, FPS = 240, 320, 12


def bench_prompts() -> list[Prompt]:
    """A click on each of the two discs."""
    return [Prompt(disc + 1, 0, (_disc_centre(disc, 0),), (True,)) for disc in (0, 1)]


def write_bench_video(path: Path, num_frames: int = 36) -> None:
    """A red and a blue disc that pass behind one another over a patterned ground."""
    write_video(path, _pictures(num_frames), FPS)


def write_random_checkpoint(folder: Path, seed: int = 0) -> None:
    """A model of the SAM 2 family, small enough for a laptop, with random weights."""
    torch.manual_seed(seed)
    model = Sam2VideoModel(small_config())
    with torch.no_grad():  # without training the score says nothing: let objects be present
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    model.save_pretrained(folder)
    Sam2VideoProcessor(Sam2VideoVideoProcessor(IMAGE_SIZE)).save_pretrained(folder)


def small_config() -> Sam2VideoConfig:
    """Four million parameters at 256 px."""
    grid = IMAGE_SIZE // 16
    widths = [32, 64, 128, 256]
    backbone: dict[str, Any] = {
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "hidden_size": widths[0],
        "embed_dim_per_stage": widths,
        "blocks_per_stage": [1, 2, 3, 1],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 8, 4],
        "global_attention_blocks": [5],
    }
    hidden = 128
    return Sam2VideoConfig.from_dict(
        {
            "image_size": IMAGE_SIZE,
            "vision_config": {
                "backbone_config": backbone,
                "backbone_channel_list": widths[::-1],
                "backbone_feature_sizes": [[grid * s, grid * s] for s in (4, 2, 1)],
                "fpn_hidden_size": hidden,
            },
            "prompt_encoder_config": {"hidden_size": hidden, "image_size": IMAGE_SIZE},
            "mask_decoder_config": {
                "hidden_size": hidden,
                "mlp_dim": 4 * hidden,
                "iou_head_hidden_dim": hidden,
            },
            "memory_attention_hidden_size": hidden,
            "memory_attention_num_layers": 2,
            "memory_attention_feed_forward_hidden_size": 4 * hidden,
            "memory_attention_rope_feat_sizes": [grid, grid],
            "memory_encoder_hidden_size": hidden,
            "mask_downsampler_embed_dim": hidden,
            "memory_fuser_embed_dim": hidden,
            "memory_fuser_intermediate_dim": 2 * hidden,
        }
    )


def _pictures(num_frames: int) -> Iterator[Picture]:
    rng = np.random.default_rng(0)
    tiles = rng.integers(60, 120, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    ground = np.kron(tiles, np.ones((16, 16, 1), dtype=np.uint8))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for frame_index in range(num_frames):
        picture = ground.copy()
        for disc, colour in ((1, (40, 90, 230)), (0, (230, 50, 40))):
            x, y = _disc_centre(disc, frame_index)
            picture[(columns - x) ** 2 + (rows - y) ** 2 < 34**2] = colour
        yield picture


def _disc_centre(disc: int, frame_index: int) -> tuple[float, float]:
    """Centre in pixels, x then y; the first disc goes right, the second left."""
    travelled = 6.0 * frame_index
    return (60 + travelled, 100.0) if disc == 0 else (260 - travelled, 135.0)
