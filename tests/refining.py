"""A labelled dataset on disk, and sessions over it, for tests of refinement."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bulk import config_of, settings_of
from videos import write_moving_square

from sam2model.engine import EngineOptions
from workflows.config import LabelConfig, ModelConfig
from workflows.label_engine import open_engine
from workflows.prompt_rows import PromptRow
from workflows.query import Dataset
from workflows.refine_sessions import RefineSessions, SessionOptions
from workflows.refine_types import (
    PreviewRequest,
    RefinedFrame,
    RefinementRequest,
    RefinementResult,
)
from workflows.results import CommitReport, DatasetWriter
from workflows.rows import FailureReason, Status, VideoOutcome, VideoRequest
from workflows.storage import Storage
from workflows.video_labeller import LabellingJob, VideoLabeller

FRAMES = 20
ALONE = EngineOptions(slots=1, frame_batch=1)  # then sums are the same in whatever company


def click(
    object_id: int, frame: int, x: float, y: float = 50.0, positive: bool = True
) -> PromptRow:
    point: Any = {"x": x, "y": y, "positive": positive}
    return {"object_id": object_id, "frame_index": frame, "points": [point]}


def withdrawal(object_id: int, frame: int) -> PromptRow:
    return {"object_id": object_id, "frame_index": frame}


def box(object_id: int, frame: int, x0: float, y0: float, x1: float, y1: float) -> PromptRow:
    corners = {"x0": x0, "y0": y0, "x1": x1, "y1": y1}
    return {"object_id": object_id, "frame_index": frame, "points": [], "box": corners}


def label_config(folder: Path, checkpoint: Path) -> LabelConfig:
    settings = settings_of(folder, checkpoint, compute__slots_per_actor=1, compute__frame_batch=1)
    return config_of(settings)


def label_video(
    folder: Path,
    checkpoint: Path,
    prompts: Sequence[PromptRow],
    video_id: str = "v",
    fingerprint: str = "f" * 32,
    frames: int = FRAMES,
) -> CommitReport:
    """What the bulk job does with one video, without Ray; into folder/labels."""
    path = folder / f"{video_id}.mp4"
    if not path.exists():
        write_moving_square(path, frames)
    config = label_config(folder, checkpoint)
    engine = open_engine(config)
    job = LabellingJob(config, "label-run", "0" * 64, "test")
    request = VideoRequest(video_id=video_id, video_uri=str(path), prompts=tuple(prompts))
    outcome = VideoLabeller(job, engine).label(request, fingerprint)
    engine.close()
    assert outcome.status == Status.OK, outcome.detail
    return DatasetWriter(Storage(), config.output).commit([outcome])


def record_failure(folder: Path, video_id: str) -> None:
    """A video that could not be labelled."""
    failed = VideoOutcome(
        video_id=video_id,
        video_uri=str(folder / f"{video_id}.mp4"),
        fingerprint="e" * 32,
        status=Status.FAILED,
        reason=FailureReason.NOT_FOUND,
        detail="not there",
        run_id="label-run",
        finished_at=datetime.now(UTC),
    )
    DatasetWriter(Storage(), str(folder / "labels")).commit([failed])


def open_sessions(folder: Path, checkpoint: Path, warm_frames: int = 0) -> RefineSessions:
    config = label_config(folder, checkpoint)
    model: ModelConfig = config.model
    return RefineSessions.of_model(
        config.output,
        model,
        config.storage,
        ALONE,
        config.limits,
        SessionOptions(warm_frames=warm_frames),
    )


@contextmanager
def sessions(folder: Path, checkpoint: Path, warm_frames: int = 0) -> Iterator[RefineSessions]:
    opened = open_sessions(folder, checkpoint, warm_frames)
    try:
        yield opened
    finally:
        opened.close()


def request(base: int, *prompts: PromptRow, author: str = "ann", **more: Any) -> RefinementRequest:
    values = {"video_id": "v", "base_revision": base, "author": author, "prompts": prompts}
    return RefinementRequest(**{**values, **more})


def refine(opened: RefineSessions, wanted: RefinementRequest) -> RefinementResult:
    """The result of a refinement that is let run."""
    result = list(opened.refine(wanted))[-1]
    assert isinstance(result, RefinementResult)
    return result


def preview(opened: RefineSessions, base: int, *prompts: PromptRow) -> dict[int, str]:
    """Object → mask on the frame of the last prompt."""
    wanted = PreviewRequest(
        video_id="v", base_revision=base, frame_index=prompts[-1]["frame_index"], prompts=prompts
    )
    return masks_of(opened.preview(wanted))


def masks_of(frame: RefinedFrame) -> dict[int, str]:
    return {mask.object_id: mask.counts for mask in frame.masks}


def labels(
    folder: Path, object_id: int = 1, at: int | None = None, video_id: str = "v"
) -> dict[int, str]:
    """Frame → mask of one object, as a reader sees it now or saw it at a revision."""
    rows = Dataset(str(folder / "labels")).masks(video_id, [object_id], at=at)
    return dict(zip(rows["frame_index"].to_pylist(), rows["counts"].to_pylist(), strict=True))


def version(folder: Path) -> int:
    """The number of commits of the dataset."""
    return Dataset(str(folder / "labels")).version
