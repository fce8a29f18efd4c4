"""Peak memory against a video's length: each length in a process of its own.

Frames are drawn as they are asked for and kept by nobody, so what grows is the engine's.
"""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from sam2model import Prompt
from sam2model.engine import Engine
from sam2model.video import Frame, VideoInfo
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_models import processor_for, random_model
from workflows.benchmark_timing import peak_bytes

HEIGHT, WIDTH = 120, 160


class DrawnVideo:
    """Frames without a file, as sam2model.video.Video gives them."""

    def __init__(self, num_frames: int) -> None:
        self.name, self.num_frames = "drawn", num_frames
        self.info = VideoInfo(WIDTH, HEIGHT, 0, 24.0, None, None, "none")
        self._pictures = np.random.default_rng(0).integers(
            0, 255, (8, HEIGHT, WIDTH, 3), dtype=np.uint8
        )

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        for index in range(self.num_frames)[start:stop]:
            yield Frame(index, index / 24, self._pictures[index % 8].copy())

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        for index in range(self.num_frames)[start:stop][::-1]:
            yield Frame(index, index / 24, self._pictures[index % 8].copy())


def measure_length(config: BenchConfig) -> Iterator[Row]:
    """Peak resident memory of a process that labels two objects through so many frames."""
    shortest_bytes = 0
    for num_frames in config.lengths:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            peak_bytes, device_bytes, wall_s = pool.submit(_weigh, config, num_frames).result()
        shortest_bytes = shortest_bytes or peak_bytes
        row: Row = {
            "frames": num_frames,
            "peak_MB": round(peak_bytes / 1e6, 1),
            "against_the_first": round(peak_bytes / shortest_bytes, 3),
            "frames_per_s": round(num_frames / wall_s, 1),
        }
        yield row | ({"device_MB": round(device_bytes / 1e6, 1)} if device_bytes else {})


def _weigh(config: BenchConfig, num_frames: int) -> tuple[int, int, float]:
    """Peak bytes of this process and of its device, and the seconds taken."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = random_model(config.video_model, config.device, config.dtype)
    engine = Engine(model, processor_for(model))
    prompts = [Prompt(o, o * num_frames // 2, ((40.0 + o, 40.0),), (True,)) for o in (0, 1)]
    video: Any = DrawnVideo(num_frames)
    began_s = time.perf_counter()
    told = sum(len(frame.masks) for frame in engine.label(video, prompts))
    wall_s = time.perf_counter() - began_s
    engine.close()
    if told != 2 * num_frames:
        raise AssertionError(f"{told} masks of {num_frames} frames with two objects")
    on_gpu = model.device.type == "cuda"
    return peak_bytes(), torch.cuda.max_memory_allocated() if on_gpu else 0, wall_s
