"""Many short videos: all at once through our engine, one after the other through transformers.

From files to run lengths on both sides, two objects each. transformers' side decodes with our
decoder and writes run lengths with pycocotools, so only the tracking is theirs.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam2model import Prompt, Sam2VideoProcessor
from sam2model.engine import Engine, EngineOptions
from sam2model.mask_ops import upsample_logits
from sam2model.semantics import REFERENCE
from sam2model.video import Video
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_inputs import bench_prompts, write_bench_video
from workflows.benchmark_models import (
    processor_for,
    random_model,
    session_of_transformers,
    twin_of_transformers,
)
from workflows.benchmark_timing import Turns

ROUNDS = 3


def measure_videos(config: BenchConfig) -> Iterator[Row]:
    """Frames a second of all videos together; the two sides take turns, best of a few."""
    ours = random_model(config.video_model, config.device, config.dtype)
    theirs, processor = twin_of_transformers(ours), processor_for(ours)
    engine = Engine(ours, processor, REFERENCE, EngineOptions(slots=32, frame_batch=8))
    turns = Turns(ours.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_bench_video(path, config.video_frames)
        prompts = bench_prompts(path)
        with ThreadPoolExecutor(config.videos) as pool:

            def all_at_once() -> int:
                return sum(pool.map(lambda _: _label(engine, path, prompts), range(config.videos)))

            def one_after_the_other() -> int:
                return sum(_track(theirs, processor, path, prompts) for _ in range(config.videos))

            for _ in range(ROUNDS):
                masks = turns.time("ours", all_at_once)
                if turns.time("transformers", one_after_the_other) != masks:
                    raise AssertionError("transformers told another number of masks")
    engine.close()
    frames = config.videos * config.video_frames
    ours_s, theirs_s = turns.best_s("ours"), turns.best_s("transformers")
    yield {
        "videos": config.videos,
        "frames": frames,
        "objects": len(prompts),
        "ours_frames_per_s": round(frames / ours_s, 2),
        "transformers_frames_per_s": round(frames / theirs_s, 2),
        "ratio": round(theirs_s / ours_s, 2),
        "cpu_ratio": round(turns.median_cpu_s("transformers") / turns.median_cpu_s("ours"), 2),
    }


def _label(engine: Engine, path: Path, prompts: list[Prompt]) -> int:
    with Video(path, name=path.name) as video:
        return sum(len(frame.masks) for frame in engine.label(video, prompts))


@torch.inference_mode()
def _track(model: Any, processor: Sam2VideoProcessor, path: Path, prompts: list[Prompt]) -> int:
    from pycocotools import mask as coco

    with Video(path, name=path.name) as video:
        frames = [frame.rgb for frame in video.frames()]
    size = frames[0].shape[:2]
    pixels = processor.video_processor(frames).pixel_values_videos[0]
    clicks = [prompt.points_px[0] for prompt in prompts]
    session = session_of_transformers(pixels, size, clicks, model.no_memory_embedding)
    told = 0
    for frame_index in range(len(frames)):
        logits = model(session, frame_idx=frame_index).pred_masks.squeeze(1)
        for mask in (upsample_logits(logits, size) > 0).cpu().numpy():
            coco.encode(np.asfortranarray(mask.view(np.uint8)))
            told += 1
    return told
