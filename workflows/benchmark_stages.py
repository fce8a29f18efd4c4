"""Where a frame's time goes: decoding, resizing, each part of the network, run lengths.

The parts are timed where they are called, one frame after the other and nothing beside; in a job
they overlap, so the slowest decides.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sam2model.mask_ops import upsample_logits
from sam2model.rle import encode_masks
from sam2model.video import Video, write_video
from sam2model.video_orientation import RgbArray
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_models import (
    FRAME_SIZE,
    drifting_frames,
    processor_for,
    random_model,
    spread_clicks,
)
from workflows.benchmark_objects import FULL_AFTER, our_session
from workflows.benchmark_timing import Turns

PARTS = ("vision_encoder", "memory_attention", "prompt_encoder", "mask_decoder", "memory_encoder")


def measure_stages(config: BenchConfig) -> Iterator[Row]:
    """Medians over the frames after the memory is full, with the first number of objects."""
    model = random_model(config.size, config.device, config.dtype)
    clicks = spread_clicks(config.objects[0])
    video_processor = processor_for(model).video_processor
    frames = drifting_frames(config.frames + 1)
    pixels = video_processor(frames).pixel_values_videos[0]
    session = our_session(model, pixels, clicks)
    turns, outside = Turns(model.device), Turns(torch.device("cpu"))
    for t in range(config.frames + 1):
        if t == FULL_AFTER + 1:
            _watch(model.for_compute(), turns)
        name = "network" if t > FULL_AFTER else "warm-up"
        logits = turns.time(name, model, session, t).pred_masks.squeeze(1)
        outside.time("resize", video_processor.resize, frames[t])
        turns.time("run lengths", encode_masks, upsample_logits(logits, FRAME_SIZE) > 0)
    _time_decoding(outside, frames)
    whole_s = turns.median_s("network")
    parts_s = {part: turns.median_s(part) for part in PARTS if turns.wall_s[part]}
    seconds = {
        "decode": outside.median_s("decode"),
        "resize": outside.median_s("resize"),
        **parts_s,
        "rest of the network": whole_s - sum(parts_s.values()),
        "run lengths": turns.median_s("run lengths"),
    }
    for stage, stage_s in seconds.items():
        yield {
            "stage": stage,
            "objects": len(clicks),
            "ms": round(stage_s * 1e3, 2),
            "share": round(stage_s / sum(seconds.values()), 3),
        }


def _watch(network: nn.Module, turns: Turns) -> None:
    """Time every call of the network's parts from now on."""
    for part in PARTS:
        module = network.get_submodule(part)
        module.forward = partial(turns.time, part, module.forward)


def _time_decoding(turns: Turns, frames: Sequence[RgbArray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames, 24)
        with Video(path, name=path.name) as video:
            decoded = video.frames()
            for _ in frames:
                turns.time("decode", next, decoded)
