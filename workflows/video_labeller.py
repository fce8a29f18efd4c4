"""One video at a time from a manifest row to masks in the dataset, and how it went.

Knows nothing of Ray: any number of threads may share a labeller, whose engine lets their videos
share steps. Whatever is wrong with a video becomes an outcome with a reason, never an exception.
"""

import logging
import platform
import resource
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import torch

from sam2model import Prompt, PromptError, Sam2VideoModel, Sam2VideoProcessor
from sam2model.attention import force_kernel
from sam2model.engine import DeadlineExceeded, Engine, EngineOptions
from sam2model.prompts import PromptOutOfRange
from sam2model.semantics import semantics_named
from sam2model.tracked_masks import FrameMasks
from sam2model.video import Video, VideoError, VideoLimits
from workflows.config import LabelConfig
from workflows.mask_objects import write_mask_object
from workflows.prompt_rows import PromptRow, config_hash, decode_prompts
from workflows.rows import (
    MASKS_SCHEMA,
    FailureReason,
    Source,
    Status,
    Track,
    VideoOutcome,
    VideoRequest,
)
from workflows.storage import NotFound, Storage, StorageError, TooLarge, UriNotAllowed

log = logging.getLogger(__name__)


class MaskEngine(Protocol):
    """What a labeller needs of an engine; sam2model.engine.Engine is the real one."""

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LabellingJob:
    """What every video of a run has in common; travels to the actors."""

    config: LabelConfig
    run_id: str
    weights_sha256: str
    code_version: str


def code_version() -> str:
    """The installed version of this package."""
    try:
        return version("maskmill")
    except PackageNotFoundError:
        return "unknown"


def open_engine(config: LabelConfig) -> Engine:
    """The model of a configuration on the best device that this process was given."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = config.model
    force_kernel(None if wanted.attention == "auto" else wanted.attention)
    semantics = replace(
        semantics_named(wanted.semantics),
        hole_area_px=wanted.hole_area_px,
        sprinkle_area_px=wanted.sprinkle_area_px,
    )
    model = Sam2VideoModel.from_pretrained(
        wanted.checkpoint,
        semantics=semantics,
        max_conditioning_frames=wanted.max_conditioning_frames,
    )
    model = model.to(device, dtype=getattr(torch, wanted.dtype))
    options = EngineOptions(
        slots=config.compute.slots_per_actor, frame_batch=config.compute.frame_batch
    )
    return Engine(model, Sam2VideoProcessor.from_pretrained(wanted.checkpoint), semantics, options)


class VideoLabeller:
    """An engine and a storage; `label` takes any manifest row to an outcome."""

    def __init__(self, job: LabellingJob, engine: MaskEngine) -> None:
        self.job = job
        self.engine = engine
        self.storage = Storage(job.config.storage)
        self._hardware = (
            f"{torch.cuda.get_device_name()}"
            if torch.cuda.is_available()
            else (f"{platform.machine()}, {torch.get_num_threads()} threads")
        )

    def label(self, request: VideoRequest, fingerprint: str) -> VideoOutcome:
        """Label one video and put its masks; a failure comes back as an outcome with its reason."""
        attempt = _Attempt(request.video_id)
        try:
            outcome = self._label(request, fingerprint, attempt)
        except Exception as error:
            reason = _reason(error)
            detail = f"{type(error).__name__}: {error}"
            if reason == FailureReason.INTERNAL:
                detail = "".join(traceback.format_exception(error))
                log.exception("%s: a defect", request.video_id)
            outcome = self._outcome(request, fingerprint, attempt, Status.FAILED)
            outcome = replace(outcome, reason=reason, detail=detail)
        log.info(
            "%s: %s in %.1f s, %s frames",
            request.video_id,
            outcome.reason or outcome.status,
            attempt.seconds(),
            outcome.num_frames_decoded,
        )
        return outcome

    def _label(self, request: VideoRequest, fingerprint: str, attempt: "_Attempt") -> VideoOutcome:
        limits = self.job.config.limits
        prompts = decode_prompts(request.prompts)
        with (
            self.storage.open_video(request.video_uri, limits.max_video_bytes) as source,
            Video(source, name=request.video_uri, limits=_video_limits(self.job.config)) as video,
        ):
            attempt.video = video
            attempt.stage("open")
            columns = _MaskColumns(request.video_id)
            masks = self.engine.label(
                video,
                prompts,
                request.first_frame or 0,
                request.last_frame,
                deadline_s=limits.video_deadline_s,
            )
            for frame in masks:
                columns.add(frame)
            attempt.stage("track")
            outcome = self._outcome(request, fingerprint, attempt, Status.OK)
        table = columns.table()
        tracks = _tracks(request, table, self._provenance(fingerprint))
        outcome = replace(outcome, tracks=tracks, objects=len(tracks))
        outcome = write_mask_object(self.storage, self.job.config.output, outcome, table)
        attempt.stage("write")
        return outcome

    def _outcome(
        self, request: VideoRequest, fingerprint: str, attempt: "_Attempt", status: Status
    ) -> VideoOutcome:
        video = attempt.video
        facts: dict[str, Any] = {}
        if video is not None:
            info = video.info
            facts = {
                "num_frames_header": info.num_frames_header,
                "num_frames_decoded": video.num_frames_decoded,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
                "rotation_deg": info.rotation_deg,
                "duration_s": info.duration_s,
            }
        outcome = VideoOutcome(
            video_id=request.video_id,
            video_uri=request.video_uri,
            fingerprint=fingerprint,
            status=status,
            reason=FailureReason.INTERNAL if status == Status.FAILED else None,
            run_id=self.job.run_id,
            finished_at=datetime.now(UTC),
            seconds_by_stage=attempt.seconds_by_stage,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_memory_bytes=torch.cuda.max_memory_allocated()
            if torch.cuda.is_available()
            else None,
            hardware=self._hardware,
            code_version=self.job.code_version,
            **facts,
        )
        return outcome

    def _provenance(self, fingerprint: str) -> dict[str, Any]:
        return {
            "source": Source.BULK,
            "model_id": self.job.config.model.checkpoint,
            "model_sha256": self.job.weights_sha256,
            "config_hash": config_hash(self.job.config.inference_config),
            "fingerprint": fingerprint,
            "run_id": self.job.run_id,
        }


class _Attempt:
    """The clock of one attempt and what is known of its video so far."""

    def __init__(self, video_id: str) -> None:
        self.video_id = video_id
        self.video: Video | None = None
        self.seconds_by_stage: dict[str, float] = {}
        self._began = self._stage_began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def stage(self, name: str) -> None:
        """The stage that ends now took the time since the last one ended."""
        now = time.monotonic()
        self.seconds_by_stage[name] = now - self._stage_began
        self._stage_began = now


class _MaskColumns:
    """Masks of one video as Arrow columns, a frame at a time."""

    def __init__(self, video_id: str) -> None:
        self._video_id = video_id
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict[str, Any]] = []
        self.num_frames = 0

    def add(self, frame: FrameMasks) -> None:
        self.num_frames += 1
        for mask in frame.masks:
            x0, y0, x1, y1 = mask.box_xyxy_px
            self._rows.append(
                {
                    "video_id": self._video_id,
                    "object_id": mask.object_id,
                    "frame_index": frame.frame_index,
                    "pts_s": frame.pts_s,
                    "revision": 0,
                    "counts": mask.counts,
                    "height": frame.height,
                    "width": frame.width,
                    "area_px": mask.area_px,
                    "box": {"x0": x0, "y0": y0, "x1": x1, "y1": y1} if mask.area_px else None,
                    "object_score": mask.object_score,
                    "iou_pred": mask.iou_pred,
                    "stability": mask.stability,
                    "is_prompt": mask.is_prompt,
                }
            )
        if len(self._rows) >= 8192:  # columns take a fifth of what dictionaries do
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._batches, schema=MASKS_SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=MASKS_SCHEMA))
            self._rows = []


def _tracks(
    request: VideoRequest, masks: pa.Table, provenance: dict[str, Any]
) -> tuple[Track, ...]:
    """One row for each object: its span, its presence and the range of its scores."""
    scores = ("object_score", "iou_pred", "stability")
    present = pc.cast(pc.greater(masks["area_px"], 0), pa.int32())
    grouped = masks.append_column("present", present).group_by("object_id", use_threads=False)
    rows = grouped.aggregate(
        [("frame_index", "min"), ("frame_index", "max"), ("present", "sum")]
        + [(name, kind) for name in scores for kind in ("mean", "min")]
    ).to_pylist()
    prompts: dict[int, list[PromptRow]] = {}
    for prompt in request.prompts:
        prompts.setdefault(prompt["object_id"], []).append(prompt)
    return tuple(
        Track(
            video_id=request.video_id,
            object_id=row["object_id"],
            prompts=tuple(prompts[row["object_id"]]),
            category=next(
                (p["category"] for p in prompts[row["object_id"]] if p["category"]), None
            ),
            first_frame=row["frame_index_min"],
            last_frame=row["frame_index_max"],
            frames_present=row["present_sum"],
            **{
                f"{name}_{kind}": row[f"{name}_{kind}"]
                for name in scores
                for kind in ("mean", "min")
            },
            **provenance,
        )
        for row in rows
    )


def _video_limits(config: LabelConfig) -> VideoLimits:
    limits = config.limits
    return VideoLimits(
        max_bytes=limits.max_video_bytes,
        max_pixels=limits.max_pixels,
        max_frames=limits.max_frames,
        max_seconds=limits.max_seconds,
    )


def _reason(error: BaseException) -> FailureReason:
    """The reason code of what went wrong with a video."""
    if isinstance(error, VideoError):
        return FailureReason(error.reason)
    if isinstance(error, torch.OutOfMemoryError):
        return FailureReason.OUT_OF_MEMORY
    kinds: tuple[tuple[type[BaseException], FailureReason], ...] = (
        (PromptOutOfRange, FailureReason.PROMPT_OUT_OF_RANGE),
        (PromptError, FailureReason.PROMPT_INVALID),
        (DeadlineExceeded, FailureReason.TIMEOUT),
        (UriNotAllowed, FailureReason.URI_NOT_ALLOWED),
        (NotFound, FailureReason.NOT_FOUND),
        (TooLarge, FailureReason.TOO_LARGE),
        (StorageError, FailureReason.UNREADABLE),
        (MemoryError, FailureReason.OUT_OF_MEMORY),
    )
    return next(
        (reason for kind, reason in kinds if isinstance(error, kind)), FailureReason.INTERNAL
    )
