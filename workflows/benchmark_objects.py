"""Seconds a frame with few and many objects: ours beside transformers, and Meta's predictor.

All have the same weights, frames and clicks, and take turns frame by frame in one process.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sam2model import Sam2VideoConfig, Sam2VideoInferenceSession, Sam2VideoModel
from sam2model.memory_bank import Readout
from sam2model.track_step import Sam2Network
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_machine import products_per_s
from workflows.benchmark_meta import MetaPredictor, meta_predictors
from workflows.benchmark_models import (
    FRAME_SIZE,
    Point,
    drifting_frames,
    lowest_iou,
    processor_for,
    random_model,
    session_of_transformers,
    spread_clicks,
    twin_of_transformers,
)
from workflows.benchmark_timing import Turns

FULL_AFTER = 7  # tracked frames: then every object reads as many memories as it ever will

Side = Callable[[int], Tensor]  # frame index → logits (N, 1, h, w)


def measure_objects(config: BenchConfig) -> Iterator[Row]:
    """A row for each number of objects; masks are compared on every frame."""
    ours = random_model(config.size, config.device, config.dtype)
    theirs = twin_of_transformers(ours)
    meta = meta_predictors(config, config.size, ours)
    rate = products_per_s(ours.device, ours.for_compute().dtype)
    for count in config.objects:
        yield _measure(config, ours, theirs, meta, count, rate)


def our_session(
    model: Sam2VideoModel, pixels: Tensor, clicks: list[Point]
) -> Sam2VideoInferenceSession:
    """A session with a click an object on frame 0."""
    session = Sam2VideoInferenceSession(
        pixels, *FRAME_SIZE, inference_device=model.device, dtype=model.dtype
    )
    processor_for(model).add_inputs_to_inference_session(
        session,
        0,
        list(range(len(clicks))),
        input_points=[[[list(click)] for click in clicks]],
        input_labels=[[[1]] * len(clicks)],
    )
    return session


def _measure(
    config: BenchConfig,
    ours: Sam2VideoModel,
    theirs: Any,
    meta: dict[str, MetaPredictor],
    count: int,
    rate: float,
) -> Row:
    num_frames = config.frames + 1
    pixels = processor_for(ours).video_processor(drifting_frames(num_frames))
    clicks = spread_clicks(count)
    mine = our_session(ours, pixels.pixel_values_videos[0], clicks)
    other = session_of_transformers(
        pixels.pixel_values_videos[0], FRAME_SIZE, clicks, ours.no_memory_embedding
    )
    sides: dict[str, Side] = {
        "ours": lambda t: ours(mine, frame_idx=t).pred_masks,
        "transformers": lambda t: theirs(other, frame_idx=t).pred_masks,
    }
    for name, predictor in meta.items():
        sides[name] = predictor.start(pixels.pixel_values_videos[0], FRAME_SIZE, clicks)
    turns = Turns(ours.device)
    worst = dict.fromkeys(sides, 1.0)
    for t in range(num_frames):
        if t == FULL_AFTER + 1:
            turns = Turns(ours.device)
        masks = {name: _at_frame_size(turns.time(name, side, t)) for name, side in sides.items()}
        for name in sides:
            worst[name] = min(worst[name], lowest_iou(masks["ours"], masks[name]))
    return _row(count, turns, worst, operations(ours.config, count), rate)


def _row(count: int, turns: Turns, worst: dict[str, float], work: int, rate: float) -> Row:
    on_cpu = turns.device.type == "cpu"
    ours_s, ours_cpu_s = turns.median_s("ours"), turns.median_cpu_s("ours")
    row: Row = {"objects": count, "ours_s": round(ours_s, 4)}
    if on_cpu:
        row["ours_cpu_s"] = round(ours_cpu_s, 3)
    for name in worst:
        if name == "ours":
            continue
        row[f"{name}_s"] = round(turns.median_s(name), 4)
        row[f"{name}_ratio"] = round(turns.median_s(name) / ours_s, 2)
        if on_cpu:
            row[f"{name}_cpu_ratio"] = round(turns.median_cpu_s(name) / ours_cpu_s, 2)
        row[f"{name}_iou"] = round(worst[name], 4)
    row["TFLOP"] = round(work / 1e12, 3)
    row["share_of_products"] = round(work / turns.best_s("ours") / rate, 3)
    return row


def _at_frame_size(logits: Tensor) -> Tensor:
    """Meta's predictor tells masks at the frame's size only, so all are compared there."""
    if logits.shape[-2:] == FRAME_SIZE:
        return logits
    return F.interpolate(logits.float(), FRAME_SIZE, mode="bilinear")


def operations(config: Sam2VideoConfig, objects: int) -> int:
    """Multiplications and sums of one tracked frame, all memories full: products and convolutions.

    Counted on a device that computes nothing, so whatever kernels a real one takes.
    """
    network = Sam2Network(config).eval().requires_grad_(False).to("meta")
    places, channels = math.prod(config.feature_size), config.memory_encoder_output_channels
    side, frames, pointers = config.image_size, config.num_maskmem, 16

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    memory = Readout(
        masks=empty(objects, frames, places, channels),
        time_rows=empty(objects, frames, dtype=torch.int64),
        pointers=empty(objects, pointers, config.hidden_size),
        pointer_offsets=empty(objects, pointers),
        pointer_valid=empty(objects, pointers, dtype=torch.bool),
    )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        image = network.encode_images(empty(1, 3, side, side))
        output = network.track_step(image, memory)
        prompted = empty(objects, dtype=torch.bool)
        network.encode_memory(image, output.logits, output.object_score, prompted)
    return int(counter.get_total_flops())
