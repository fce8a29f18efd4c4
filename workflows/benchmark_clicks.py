"""How long a person waits after a click: for the frame's mask, and for the video's masks."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from sam2model import Prompt
from sam2model.engine import Engine
from sam2model.refinement_memory import VideoMemory
from sam2model.video import Video
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_inputs import bench_prompts, write_bench_video
from workflows.benchmark_models import processor_for, random_model
from workflows.benchmark_timing import Turns

CLICKS = 5
NOTHING_KEPT = "click to mask, nothing kept"
MIN_FRAMES = 48  # so that there is something to be saved


def measure_clicks(config: BenchConfig) -> Iterator[Row]:
    """A correction in the last third of a labelled video, with and without what was kept of it."""
    model = random_model(config.video_model, config.device, config.dtype)
    engine = Engine(model, processor_for(model))
    num_frames = max(config.video_frames, MIN_FRAMES)
    turns = Turns(model.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_bench_video(path, num_frames)
        before = bench_prompts()
        with Video(path, name=path.name) as video:
            memory = VideoMemory()
            turns.time("label all", _refine, engine, video, before, None, memory)
            for i in range(CLICKS):
                frame_index = num_frames * 2 // 3 + i
                click = Prompt(before[0].object_id, frame_index, ((100.0 + i, 100.0),), (True,))
                one = [p for p in before if p.object_id == click.object_id]
                after = [*one, click]
                turns.time("click to mask", engine.preview, video, after, memory, frame_index)
                turns.time(NOTHING_KEPT, engine.preview, video, after, None, frame_index)
                turns.time("click to all changed masks", _refine, engine, video, after, one, memory)
                turns.time("label the object anew", _refine, engine, video, after, None, None)
    engine.close()
    for what in turns.wall_s:
        yield {
            "what": what,
            "frames": num_frames,
            "ms": round(turns.median_s(what) * 1e3, 1),
            "share_of_all": round(turns.median_s(what) / turns.median_s("label all"), 3),
        }


def _refine(
    engine: Engine,
    video: Video,
    prompts: list[Prompt],
    before: list[Prompt] | None,
    memory: VideoMemory | None,
) -> int:
    return sum(1 for _ in engine.refine(video, prompts, memory, before=before))
