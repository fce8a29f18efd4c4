"""One request of a batch from its row to masks in the dataset, as video_labeller.py does a video.

Knows nothing of Ray. The same clock, reasons and files as labelling; what is computed, and from
which base, is refine.py's matter.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from sam2model.video import Video
from workflows.config import RefineConfig
from workflows.label_engine import MaskEngine
from workflows.labelled_videos import about_video
from workflows.prompt_rows import config_hash
from workflows.query import Dataset
from workflows.refine import (
    Maker,
    Recomputed,
    check_fresh,
    check_prompts,
    labels_of,
    newest_revision,
    read_base,
    recompute,
)
from workflows.refine_plan import plan_refinement
from workflows.refine_requests import request_of
from workflows.refine_types import RefinementError, RefinementRequest
from workflows.rows import Status, Track, VideoOutcome, VideoRequest
from workflows.video_labeller import (
    Attempt,
    LabellingJob,
    OnFrame,
    VideoLabeller,
    video_limits,
)
from workflows.video_masks import VideoMasks


@dataclass(frozen=True, slots=True)
class RefiningJob(LabellingJob):
    """What every request of a run has in common."""

    def worker(self, engine: MaskEngine, on_frame: OnFrame) -> "VideoRefiner":
        return VideoRefiner(self, engine, on_frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineTask(VideoRequest):
    """A request with the place of its video."""

    wanted: RefinementRequest


class VideoRefiner(VideoLabeller):
    """Takes rows of a RefinePlan to outcomes."""

    def __init__(
        self, job: LabellingJob, engine: MaskEngine, on_frame: OnFrame = lambda frame: None
    ) -> None:
        super().__init__(job, engine, on_frame)
        assert isinstance(job.config, RefineConfig)  # the job of a refining run
        self._author = job.config.author
        settings = job.config.inference_config
        self._maker = Maker(
            job.config.model.checkpoint,
            job.weights_sha256,
            settings,
            config_hash(settings),
            job.run_id,
        )
        self._lock = threading.Lock()
        self._dataset: Dataset | None = None

    def work(self, row: Mapping[str, Any]) -> VideoOutcome:
        dataset = self._newest()
        video_id = row["video_id"]
        base = row["base_revision"]
        if base is None:
            base = newest_revision(dataset, video_id)
        task = RefineTask(
            video_id=video_id,
            video_uri=about_video(dataset, video_id).get("video_uri") or "",
            prompts=tuple(row["prompts"] or ()),
            wanted=request_of(row, base, self._author),
        )
        if self._is_committed(dataset, task.wanted):
            return self._outcome(task, row["fingerprint"], Attempt(0), status=Status.OK, objects=0)
        return self.label(task, row["fingerprint"], row["revision"])

    def _name(self, request: VideoRequest, fingerprint: str) -> str:
        """Masks from another base are others, and lie elsewhere."""
        assert isinstance(request, RefineTask)  # made by `work`
        return f"{fingerprint}-{request.wanted.base_revision}"

    def _labels(
        self, request: VideoRequest, fingerprint: str, attempt: Attempt
    ) -> tuple[tuple[Track, ...], pa.Table]:
        assert isinstance(request, RefineTask)  # made by `work`
        wanted, limits = request.wanted, self.job.config.limits
        if any(prompt is None for prompt in wanted.prompts):
            raise RefinementError("a prompt is null; wanted an object, a frame, what to look for")
        attempt.begin("base")
        dataset = self._newest()
        base = read_base(dataset, request.video_id, wanted.base_revision)
        plan = plan_refinement(wanted, base.tracks)
        check_fresh(dataset, base, plan.object_ids)
        done = Recomputed(VideoMasks(request.video_id))
        attempt.begin("open")
        with (
            self.storage.open_video(base.video_uri, limits.max_video_bytes) as source,
            Video(source, name=base.video_uri, limits=video_limits(limits)) as video,
        ):
            attempt.video = video
            num_frames = base.about.get("num_frames_decoded")
            check_prompts(plan, num_frames, video.info.height, video.info.width)
            attempt.begin("track")
            for frame in recompute(
                self.engine, video, None, base, plan, wanted, done, deadline_s=attempt.left_s
            ):
                self._on_frame(frame)
            attempt.end()
        labels = labels_of(base, plan, done, wanted, self._maker)
        if not labels.tracks:
            raise RefinementError(f"{request.video_id}: no frame of the span could be computed")
        return labels.tracks, labels.masks

    def _outcome(
        self, request: VideoRequest, fingerprint: str, attempt: Attempt, **ending: Any
    ) -> VideoOutcome:
        assert isinstance(request, RefineTask)  # made by `work`
        outcome = super()._outcome(request, fingerprint, attempt, **ending)
        return replace(outcome, request_id=request.wanted.request_id)

    def _newest(self) -> Dataset:
        with self._lock:
            if self._dataset is None:
                self._dataset = Dataset(self.job.config.output, self.storage)
                return self._dataset
        return self._dataset.refresh()

    def _is_committed(self, dataset: Dataset, wanted: RefinementRequest) -> bool:
        """By whichever door it came in before."""
        query = "SELECT 1 FROM tracks WHERE video_id = ? AND refinement.request_id = ? LIMIT 1"
        return bool(dataset.sql(query, [wanted.video_id, wanted.request_id]).num_rows)
