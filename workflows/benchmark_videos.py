"""Many short videos: all at once through our engine, one after the other through the references.

From files to run lengths on all sides. The references' sides decode with our decoder and write run
lengths with pycocotools, so only the tracking is theirs.
"""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam2model import Prompt, Sam2VideoModel, Sam2VideoProcessor
from sam2model.engine import Engine, EngineOptions
from sam2model.mask_ops import upsample_logits
from sam2model.semantics import REFERENCE
from sam2model.video import Video
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_inputs import bench_prompts, write_bench_video
from workflows.benchmark_meta import MetaPredictor, meta_predictors
from workflows.benchmark_models import (
    Point,
    processor_for,
    random_model,
    session_of_transformers,
    twin_of_transformers,
)
from workflows.benchmark_timing import Turns

ROUNDS = 3


Tracks = Callable[[Tensor, tuple[int, int], list[Point]], Iterator[Tensor]]
# pixels (T, 3, S, S) normalised, rows and columns of the frame, clicks → each frame's logits


def measure_videos(config: BenchConfig) -> Iterator[Row]:
    """Frames a second of all videos together; the sides take turns, best of a few."""
    ours = random_model(config.video_model, config.device, config.dtype)
    processor = processor_for(ours)
    references = {"transformers": _tracks_of_transformers(ours)} | _tracks_of_meta(config, ours)
    engine = Engine(ours, processor, REFERENCE, EngineOptions(slots=32, frame_batch=8))
    turns = Turns(ours.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_bench_video(path, config.video_frames)
        prompts = bench_prompts()[: config.objects[0]]
        with ThreadPoolExecutor(config.videos) as pool:

            def all_at_once() -> int:
                return sum(pool.map(lambda _: _label(engine, path, prompts), range(config.videos)))

            def one_after_the_other(tracks: Tracks) -> int:
                each = (_follow(tracks, processor, path, prompts) for _ in range(config.videos))
                return sum(each)

            for _ in range(ROUNDS):
                masks = turns.time("ours", all_at_once)
                for name, tracks in references.items():
                    if turns.time(name, one_after_the_other, tracks) != masks:
                        raise AssertionError(f"{name} told another number of masks")
    engine.close()
    yield _row(config, len(prompts), turns, [*references])


def _row(config: BenchConfig, objects: int, turns: Turns, references: list[str]) -> Row:
    frames = config.videos * config.video_frames
    ours_s = turns.best_s("ours")
    row: Row = {
        "videos": config.videos,
        "frames": frames,
        "objects": objects,
        "ours_frames_per_s": round(frames / ours_s, 2),
    }
    for name in references:
        row[f"{name}_frames_per_s"] = round(frames / turns.best_s(name), 2)
        row[f"{name}_ratio"] = round(turns.best_s(name) / ours_s, 2)
        if turns.device.type == "cpu":
            cpu_ratio = turns.median_cpu_s(name) / turns.median_cpu_s("ours")
            row[f"{name}_cpu_ratio"] = round(cpu_ratio, 2)
    return row


def _label(engine: Engine, path: Path, prompts: list[Prompt]) -> int:
    with Video(path, name=path.name) as video:
        return sum(len(frame.masks) for frame in engine.label(video, prompts))


@torch.inference_mode()
def _follow(
    tracks: Tracks, processor: Sam2VideoProcessor, path: Path, prompts: list[Prompt]
) -> int:
    from pycocotools import mask as coco

    with Video(path, name=path.name) as video:
        frames = [frame.rgb for frame in video.frames()]
    size = frames[0].shape[:2]
    pixels = processor.video_processor(frames).pixel_values_videos[0]
    told = 0
    for logits in tracks(pixels, size, [prompt.points_px[0] for prompt in prompts]):
        for mask in (upsample_logits(logits.squeeze(1), size) > 0).cpu().numpy():
            coco.encode(np.asfortranarray(mask.view(np.uint8)))
            told += 1
    return told


def _tracks_of_transformers(ours: Sam2VideoModel) -> Tracks:
    theirs = twin_of_transformers(ours)

    def tracks(pixels: Tensor, size: tuple[int, int], clicks: list[Point]) -> Iterator[Tensor]:
        session = session_of_transformers(pixels, size, clicks, ours.no_memory_embedding)
        for frame_index in range(len(pixels)):
            yield theirs(session, frame_idx=frame_index).pred_masks

    return tracks


def _tracks_of_meta(config: BenchConfig, ours: Sam2VideoModel) -> dict[str, Tracks]:
    """Its predictor eager, and compiled where that is wanted; none of the demo's small model."""
    if config.video_model == "demo":
        return {}
    predictors = meta_predictors(config, config.video_model, ours)
    return {name: _tracks_of_predictor(predictor) for name, predictor in predictors.items()}


def _tracks_of_predictor(predictor: MetaPredictor) -> Tracks:
    def tracks(pixels: Tensor, size: tuple[int, int], clicks: list[Point]) -> Iterator[Tensor]:
        step = predictor.start(pixels, size, clicks)
        for frame_index in range(len(pixels)):
            yield step(frame_index)

    return tracks
