"""One video from a manifest row to masks in the dataset, and how it went. Knows nothing of Ray.

Any number of threads may share a labeller, whose engine lets their videos share steps. Whatever is
wrong with a video becomes an outcome with a reason; only what is wrong with the dataset's storage
or with the device is raised.
"""

import logging
import resource
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import pyarrow as pa

from sam2model import Prompt, PromptError
from sam2model.prompts import PromptOutOfRange
from sam2model.video import Video, VideoError, VideoLimits
from workflows.config import LabelConfig, LimitsConfig, PipelineConfig
from workflows.deadline import call_within
from workflows.label_engine import (
    MaskEngine,
    hardware,
    is_device_lost,
    is_out_of_memory,
    peak_device_memory_bytes,
)
from workflows.mask_objects import find_mask_object, write_mask_object
from workflows.prompt_rows import config_hash, decode_prompts
from workflows.quality import with_quality
from workflows.quality_backward import disagreement, plan_checks
from workflows.refine_types import RefinementError
from workflows.revisions import StaleRevision
from workflows.rows import FailureReason, Source, Status, Track, VideoOutcome, VideoRequest
from workflows.run_board import MadeFrame
from workflows.storage import NotFound, Storage, StorageError, TooLarge, UriNotAllowed
from workflows.video_masks import VideoMasks, tracks_of

log = logging.getLogger(__name__)

GRACE_S = 15.0  # after the deadline, for the engine's step and a decoder that is to stop
OnFrame = Callable[[MadeFrame], None]

DETAIL_CHARACTERS = 4000  # of a failure: a row must travel and be read


@dataclass(frozen=True, slots=True)
class LabellingJob:
    """What every video of a run has in common; travels to the actors."""

    config: PipelineConfig
    run_id: str
    weights_sha256: str
    code_version: str

    def worker(self, engine: MaskEngine, on_frame: OnFrame) -> "VideoLabeller":
        """What takes rows of a plan to outcomes, in an actor."""
        return VideoLabeller(self, engine, on_frame)

    def alone(self, slots: int) -> Self:
        """The same with one video at a time and fewer slots: the same masks up to rounding."""
        compute = replace(
            self.config.compute,
            videos_in_flight=1,
            slots_per_actor=min(slots, self.config.compute.slots_per_actor),
            frame_batch=1,
        )
        return replace(self, config=replace(self.config, compute=compute))


class VideoLabeller:
    """An engine and a storage; `label` takes any manifest row to an outcome.

    on_frame: called with each frame's masks as they come, from any thread.
    """

    def __init__(
        self,
        job: LabellingJob,
        engine: MaskEngine,
        on_frame: OnFrame = lambda frame: None,
    ) -> None:
        self.job = job
        self.engine = engine
        self.storage = Storage(job.config.storage)
        self._on_frame = on_frame
        self._hardware = hardware()

    def work(self, row: Mapping[str, Any]) -> VideoOutcome:
        """As `label`, of a row of a plan."""
        return self.label(VideoRequest.from_row(row), row["fingerprint"], row["revision"])

    def label(self, request: VideoRequest, fingerprint: str, revision: int = 1) -> VideoOutcome:
        """Label one video and put its masks, or find them put by an attempt that then died.

        revision: the one that the masks get if nobody else labels the video meanwhile.
        """
        output = self.job.config.output
        name = self._name(request, fingerprint)
        found = find_mask_object(self.storage, output, request.video_id, name)
        if found is not None:
            return found
        limit_s = self.job.config.limits.video_deadline_s
        attempt = Attempt(limit_s)
        try:
            tracks, table = call_within(
                limit_s + GRACE_S, lambda: self._labels(request, fingerprint, attempt)
            )
        except (Exception, SystemExit) as error:  # a polite exit would leave Ray a dead slot
            if is_device_lost(error):
                raise
            reason, detail = explain_failure(error)
            if reason == FailureReason.TIMEOUT:
                detail = f"{attempt.stage}: {detail}; the deadline is {limit_s:g} s"
            attempt.end()
            return self._outcome(
                request, fingerprint, attempt, status=Status.FAILED, reason=reason, detail=detail
            )
        outcome = self._outcome(
            request, fingerprint, attempt, status=Status.OK, objects=len(tracks), tracks=tracks
        )
        attempt.begin("write")
        outcome = write_mask_object(self.storage, output, outcome, table, revision, name)
        attempt.end()
        return replace(outcome, seconds_by_stage={**outcome.seconds_by_stage, **attempt.seconds})

    def _name(self, request: VideoRequest, fingerprint: str) -> str:
        """Of the labelling, by which its masks are found again."""
        return fingerprint

    def _labels(
        self, request: VideoRequest, fingerprint: str, attempt: "Attempt"
    ) -> tuple[tuple[Track, ...], pa.Table]:
        """Tracks and masks of a whole video. Raises whatever is wrong with it."""
        limits = self.job.config.limits
        if any(prompt is None for prompt in request.prompts):
            raise PromptError("a prompt is null; wanted an object, a frame and what to look for")
        prompts = decode_prompts(request.prompts)
        attempt.begin("open")
        with (
            self.storage.open_video(request.video_uri, limits.max_video_bytes) as source,
            Video(source, name=request.video_uri, limits=video_limits(limits)) as video,
        ):
            attempt.video = video
            table = self._track(video, prompts, request, attempt)
            checked = self._check(video, table, attempt)
        provenance = self._provenance(fingerprint)
        tracks = tracks_of(request.video_id, table, request.prompts, provenance)
        return with_quality(tracks, table, checked), table

    def _track(
        self, video: Video, prompts: list[Prompt], request: VideoRequest, attempt: "Attempt"
    ) -> pa.Table:
        """The masks of the span asked for."""
        masks = VideoMasks(request.video_id)
        attempt.begin("track")
        for frame in self.engine.label(
            video,
            prompts,
            request.first_frame or 0,
            request.last_frame,
            deadline_s=attempt.left_s,
        ):
            masks.add(frame)
            self._on_frame(frame)
        attempt.end()
        return masks.table()

    def _check(
        self, video: Video, masks: pa.Table, attempt: "Attempt"
    ) -> dict[tuple[int, int], float]:
        """How far tracking backwards disagrees, where that is tried; no video is lost for it."""
        config = self.job.config
        assert isinstance(config, LabelConfig)  # the job of a labelling run
        checks = plan_checks(masks, config.quality.backward_share)
        if not checks:
            return {}
        attempt.begin("check")
        try:
            return disagreement(self.engine, video, masks, checks, attempt.left_s)
        except TimeoutError as error:
            log.warning("%s: labelled, but not all checks were made: %s", video.name, error)
            return {}
        finally:
            attempt.end()

    def _outcome(
        self, request: VideoRequest, fingerprint: str, attempt: "Attempt", **ending: Any
    ) -> VideoOutcome:
        return VideoOutcome(
            video_id=request.video_id,
            video_uri=request.video_uri,
            fingerprint=fingerprint,
            run_id=self.job.run_id,
            finished_at=datetime.now(UTC),
            seconds_by_stage=dict(attempt.seconds),
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_memory_bytes=peak_device_memory_bytes(),
            hardware=self._hardware,
            code_version=self.job.code_version,
            **video_facts(attempt.video),
            **ending,
        )

    def _provenance(self, fingerprint: str) -> dict[str, Any]:
        return {
            "source": Source.BULK,
            "model_id": self.job.config.model.checkpoint,
            "model_sha256": self.job.weights_sha256,
            "config_hash": config_hash(self.job.config.inference_config),
            "fingerprint": fingerprint,
            "run_id": self.job.run_id,
        }


class Attempt:
    """The clock of one attempt, and what is known of its video so far."""

    def __init__(self, limit_s: float) -> None:
        self.video: Video | None = None
        self.stage = "begin"
        self.seconds: dict[str, float] = {}
        self._began = self._stage_began = time.monotonic()
        self._limit_s = limit_s

    @property
    def left_s(self) -> float:
        return max(self._began + self._limit_s - time.monotonic(), 0.0)

    def begin(self, stage: str) -> None:
        """The stage before, if any, ends here."""
        self.end()
        self.stage = stage

    def end(self) -> None:
        now = time.monotonic()
        if self.stage not in ("begin", "end"):
            self.seconds[self.stage] = now - self._stage_began
        self.stage, self._stage_began = "end", now


def explain_failure(error: BaseException) -> tuple[FailureReason, str]:
    """Reason code and detail of what went wrong with a video."""
    reason = _reason(error)
    if reason == FailureReason.INTERNAL:
        return reason, "".join(traceback.format_exception(error))[-DETAIL_CHARACTERS:]
    return reason, f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]


def video_facts(video: Video | None) -> dict[str, Any]:
    """What the videos table says of a video itself."""
    if video is None:
        return {}
    return {
        "num_frames_header": video.info.num_frames_header,
        "num_frames_decoded": video.num_frames_decoded,
        "fps": video.info.fps,
        "width": video.info.width,
        "height": video.info.height,
        "rotation_deg": video.info.rotation_deg,
        "duration_s": video.info.duration_s,
    }


def video_limits(limits: LimitsConfig) -> VideoLimits:
    return VideoLimits(
        max_bytes=limits.max_video_bytes,
        max_pixels=limits.max_pixels,
        max_frames=limits.max_frames,
        max_seconds=limits.max_seconds,
    )


def code_version() -> str:
    """The installed version of this package."""
    try:
        return version("maskmill")
    except PackageNotFoundError:
        return "unknown"


def _reason(error: BaseException) -> FailureReason:
    if isinstance(error, VideoError):
        return FailureReason(error.reason)
    if is_out_of_memory(error):
        return FailureReason.OUT_OF_MEMORY
    kinds: tuple[tuple[type[BaseException], FailureReason], ...] = (
        (StaleRevision, FailureReason.STALE_REVISION),
        (RefinementError, FailureReason.REQUEST_INVALID),
        (PromptOutOfRange, FailureReason.PROMPT_OUT_OF_RANGE),
        (PromptError, FailureReason.PROMPT_INVALID),
        (TimeoutError, FailureReason.TIMEOUT),  # the engine's DeadlineExceeded is one
        (UriNotAllowed, FailureReason.URI_NOT_ALLOWED),
        (NotFound, FailureReason.NOT_FOUND),
        (TooLarge, FailureReason.TOO_LARGE),
        (StorageError, FailureReason.UNREADABLE),
    )
    return next(
        (reason for kind, reason in kinds if isinstance(error, kind)), FailureReason.INTERNAL
    )
