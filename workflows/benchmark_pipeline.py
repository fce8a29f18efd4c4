"""What the pipeline itself costs a video: a bulk job on Ray whose engine does no work."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sam2model import Prompt
from sam2model.engine import Lane
from sam2model.labelling_plan import Span
from sam2model.refinement_memory import VideoMemory
from sam2model.rle import encode_mask
from sam2model.tracked_masks import FrameMasks, TrackedMask
from sam2model.video import Video
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_inputs import bench_prompts, write_bench_video, write_random_checkpoint
from workflows.config import LabelConfig, PipelineConfig, load_config
from workflows.label_engine import MaskEngine
from workflows.label_run import label
from workflows.manifest import write_manifest
from workflows.storage import Storage


class IdleEngine:
    """Gives every object the same square on every frame, without looking at it."""

    def label(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        height, width = video.info.height, video.info.width
        square = np.zeros((height, width), np.bool_)
        square[4:12, 4:12] = True
        counts = encode_mask(square)
        masks = [
            TrackedMask(prompt.object_id, counts, 64, (4, 4, 12, 12), 1.0, 0.5, 0.25, False)
            for prompt in prompts
        ]
        for frame in video.frames(first_frame, None if last_frame is None else last_frame + 1):
            yield FrameMasks(frame.index, frame.pts_s, height, width, masks)

    def refine(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        memory: VideoMemory | None,
        *,
        before: Sequence[Prompt] | None = None,
        first_frame: int = 0,
        last_frame: int | None = None,
        told: Span | None = None,
        lane: Lane = "interactive",
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        yield from self.label(video, prompts, first_frame, last_frame, deadline_s=deadline_s)

    def close(self) -> None:
        """It holds nothing."""


def open_idle_engine(config: PipelineConfig, weights_sha256: str) -> MaskEngine:
    """An engine of any configuration."""
    del config, weights_sha256
    return IdleEngine()


def measure_pipeline(config: BenchConfig) -> Iterator[Row]:
    """Videos of one frame from a manifest to committed rows, starting Ray and the actor apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bench_video(folder / "video.mp4", 1)
        write_random_checkpoint(folder / "checkpoint")
        few_s, _ = _run(folder, "few", 1)
        wall_s, cpu_s = _run(folder, "many", config.pipeline_videos + 1)
    yield {
        "videos": config.pipeline_videos,
        "start_s": round(few_s, 1),
        "ms_per_video": round((wall_s - few_s) / config.pipeline_videos * 1e3, 2),
        "driver_cpu_ms_per_video": round(cpu_s / config.pipeline_videos * 1e3, 2),
    }


def _run(folder: Path, name: str, videos: int) -> tuple[float, float]:
    """Seconds by the clock, and of this process, to label so many videos."""
    manifest = folder / f"{name}.parquet"
    path = folder / "video.mp4"
    prompts = [
        {
            "object_id": prompt.object_id,
            "frame_index": 0,
            "points": [{"x": x, "y": y, "positive": True} for x, y in prompt.points_px],
            "box": None,
            "mask": None,
            "category": None,
        }
        for prompt in bench_prompts()
    ]
    row = {"video_uri": str(path), "prompts": prompts}
    write_manifest(
        ({"video_id": f"v{i:07}", **row} for i in range(videos)), str(manifest), Storage()
    )
    settings = {
        "manifest": manifest,
        "output": folder / name,
        "model.checkpoint": folder / "checkpoint",
        "compute.gpus_per_actor": 0,
        "compute.cpus_per_actor": 0.5,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    began_s, cpu_s = time.perf_counter(), time.process_time()
    summary = label(load_config(LabelConfig, overrides=overrides), open_idle_engine)
    if summary.ok != videos:
        raise AssertionError(f"{summary.ok} of {videos} videos were labelled")
    return time.perf_counter() - began_s, time.process_time() - cpu_s
