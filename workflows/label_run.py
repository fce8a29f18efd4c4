"""The bulk job from a manifest to a dataset: plan, label, commit, and count what is there.

Knows nothing of models, nor how tasks reach the machines that label. Videos that do not come home
with an outcome, for their worker died or their device ran out of memory, run again one at a time
in smaller steps, so that their neighbours come through and the one to blame shows.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.exceptions import RayError

from workflows.checkpoints import local_checkpoint
from workflows.committer import Committer
from workflows.config import LabelConfig, dump_config
from workflows.dataset_log import DatasetLog
from workflows.finished import FinishedVideos
from workflows.label import Home, label_tasks
from workflows.label_engine import EngineFactory, open_engine
from workflows.label_plan import Labelling, LabelPlan
from workflows.label_summary import Summary, frames_of
from workflows.manifest import read_pieces
from workflows.mask_objects import read_mask_object
from workflows.next_revisions import next_revisions
from workflows.progress import OnProgress, Progress, Rate, cost_under_way
from workflows.ray_session import Stopped, check_resources, connected, stops_on_signal
from workflows.results import DatasetWriter
from workflows.rows import FailureReason, Status, VideoOutcome
from workflows.run_board import Report, RunBoard
from workflows.storage import Storage
from workflows.task_spool import IntArray
from workflows.uris import join_uri
from workflows.video_costs import FloatArray
from workflows.video_labeller import LabellingJob, code_version

log = logging.getLogger(__name__)

TICK_S = 1.0
BOARD_PATIENCE_S = 5.0


class Plan(Protocol):
    """What a run needs of a plan; LabelPlan says what each is."""

    videos: int
    skipped: int
    order: IntArray
    work: FloatArray

    @property
    def num_tasks(self) -> int: ...

    def tasks(self, numbers: IntArray) -> Iterator[pa.Table]: ...

    def video_ids(self) -> pa.ChunkedArray: ...

    def at_fault(self) -> Iterator[pa.Table]: ...

    def keys(self) -> Iterator[tuple[list[str], list[str]]]: ...


def label(
    config: LabelConfig,
    engine_factory: EngineFactory = open_engine,
    on_progress: OnProgress = lambda progress: None,
) -> Summary:
    """Label what a manifest asks for and the dataset does not have.

    on_progress is called now and then from a thread of its own. SIGTERM or SIGINT ends the run
    early with all that is finished committed, `stopped` in the summary. Raises LostVideos if in
    the end the dataset does not say of every row how it went.
    """
    began, started_at = time.monotonic(), datetime.now(UTC)
    storage = Storage(config.storage)
    next(read_pieces(config.manifest, storage, ["video_id"]), None)  # before anything is made
    job = LabellingJob(
        config=config,
        run_id=f"label-{started_at:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}",
        weights_sha256=local_checkpoint(config.model.checkpoint, storage).sha256,
        code_version=code_version(),
    )
    writer = DatasetWriter(storage, config.output)
    labelling = Labelling(job.weights_sha256, config.inference_config)
    finished = writer.finished(config.retry_reasons)
    with LabelPlan(config.manifest, storage, labelling, finished) as plan:
        return run_plan(job, plan, writer, finished, engine_factory, on_progress, began, started_at)


def run_plan(
    job: LabellingJob,
    plan: Plan,
    writer: DatasetWriter,
    finished: FinishedVideos,
    engine_factory: EngineFactory,
    on_progress: OnProgress,
    began: float,
    started_at: datetime,
) -> Summary:
    """Do what a plan says and count what is there.

    finished: as the plan was made with. began: of the job, on the monotonic clock.
    """
    config = job.config
    summary = Summary(job.run_id, videos=plan.videos, skipped=plan.skipped)

    def record() -> None:
        summary.wall_s = time.monotonic() - began
        ended_at = datetime.now(UTC)
        writer.record_run(summary.to_row(config, job.code_version, started_at, ended_at))

    if plan.num_tasks:
        LabelRun(job, plan, writer, summary, engine_factory, on_progress, record).run()
    if not summary.stopped:
        # Asked of the dataset anew, unless it was asked a moment ago.
        summary.ok, summary.failed = _count(writer.finished() if plan.num_tasks else finished, plan)
        record()
        summary.check()
    return summary


class LabelRun:
    """One run of a plan; counts go to the summary. record: commits the run's own row."""

    def __init__(
        self,
        job: LabellingJob,
        plan: Plan,
        writer: DatasetWriter,
        summary: Summary,
        engine_factory: EngineFactory,
        on_progress: OnProgress,
        record: Callable[[], None],
    ) -> None:
        config = job.config
        self._job, self._plan, self._summary = job, plan, summary
        self._engine_factory, self._on_progress = engine_factory, on_progress
        self._record = record
        self._committer = Committer(
            writer,
            config.commit.videos,
            config.commit.seconds,
            isinstance(config, LabelConfig) and config.supersede_reviewed,
        )
        self._began = time.monotonic()
        self._cost_done = 0.0
        self._storage = writer.storage
        self._board: Any = None
        self._rate = Rate()
        self._last_totals = Report()

    def run(self) -> None:
        """Label all; whatever ends it, what is finished is committed."""
        if not len(self._plan.order):
            self._work()
            return
        with connected():
            check_resources(self._job.config.compute)
            try:
                with stops_on_signal(self._keep):
                    self._work()
            except Stopped:
                log.warning("stopped; what is finished is kept")

    def _work(self) -> None:
        config = self._job.config
        name = f"{self._job.run_id}.yaml"
        self._storage.put(join_uri(config.output, "_runs", name), dump_config(config).encode())
        with self._committer:
            for piece in self._plan.at_fault():
                for row in piece.to_pylist():
                    self._commit(self._failure(row, FailureReason(row["reason"]), row["detail"]))
            if len(self._plan.order):
                self._label()

    def _label(self) -> None:
        self._board = ray.remote(RunBoard).options(num_cpus=0, max_restarts=-1).remote()
        try:
            self._label_in_passes()
        finally:
            ray.kill(self._board)

    def _label_in_passes(self) -> None:
        self._revisions = self._next_revisions()
        slots = self._job.config.compute.slots_per_actor
        passes = [self._job, self._job.alone(max(slots // 4, 1)), self._job.alone(1)]
        left = self._plan.order
        with _Ticker(self._tick):
            for job in passes:
                if job is not self._job:
                    log.warning("%d videos did not come home; each runs again alone", len(left))
                    self._summary.reruns += len(left)
                left = self._pass(job, left, is_last=job is passes[-1])
                if not len(left):
                    break
            self._give_up(left)
        self._count_devices(self._totals())

    def _keep(self) -> None:
        """Commit what came home, and that the run was stopped, though the pool is still there."""
        self._summary.stopped = True
        self._count_devices(self._last_totals)
        try:
            self._committer.flush()
        finally:
            self._record()

    def _count_devices(self, totals: Report) -> None:
        self._summary.device_s, self._summary.device_busy_s = totals.alive_s, totals.busy_s or 0.0

    def _pass(self, job: LabellingJob, numbers: IntArray, is_last: bool) -> IntArray:
        """Label tasks; the numbers of those that are still to be labelled."""
        is_home = np.zeros(self._plan.num_tasks, bool)
        homes = label_tasks(
            job, self._engine_factory, self._pieces(numbers), len(numbers), self._board
        )
        with closing(homes):
            for home in homes:
                if home.outcome.reason != FailureReason.OUT_OF_MEMORY or is_last:
                    is_home[home.task] = True
                    self._take(home)
        return numbers[~is_home[numbers]]

    def _take(self, home: Home) -> None:
        outcome = home.outcome
        if home.rest is not None:
            outcome = read_mask_object(self._storage, self._job.config.output, home.rest)
        log.info(
            "%s: %s in %.1f s%s",
            outcome.video_id,
            outcome.reason or outcome.status,
            sum(outcome.seconds_by_stage.values()),
            f", {frames_of(outcome)} frames" if outcome.status == Status.OK else "",
        )
        self._cost_done += float(self._plan.work[home.task])
        self._commit(outcome)

    def _commit(self, outcome: VideoOutcome) -> None:
        self._summary.add(outcome)
        self._committer.add(outcome)

    def _give_up(self, numbers: IntArray) -> None:
        """Record videos whose worker died each time, twice with nothing else in it."""
        for piece in self._plan.tasks(numbers):
            for row in piece.to_pylist():
                detail = "its worker process died three times, twice with this video alone in it"
                self._commit(self._failure(row, FailureReason.INTERNAL, detail))

    def _failure(self, row: dict[str, Any], reason: FailureReason, detail: str) -> VideoOutcome:
        return VideoOutcome(
            video_id=row["video_id"],
            video_uri=row.get("video_uri") or "",
            request_id=row.get("request_id"),
            fingerprint=row["fingerprint"],
            status=Status.FAILED,
            reason=reason,
            detail=detail,
            run_id=self._job.run_id,
            finished_at=datetime.now(UTC),
            code_version=self._job.code_version,
        )

    def _pieces(self, numbers: IntArray) -> Iterator[pa.Table]:
        for piece in self._plan.tasks(numbers):
            revisions = self._revisions[piece["task"].to_numpy()]
            yield piece.append_column("revision", pa.array(revisions))

    def _next_revisions(self) -> npt.NDArray[np.int32]:
        """Of every task."""
        tracks = DatasetLog(self._storage, self._job.config.output).tracks
        return next_revisions(tracks.refresh(), self._plan.video_ids())

    def _tick(self) -> None:
        """Tell how far the run is; from a thread of its own."""
        totals, summary = self._totals(), self._summary
        frames = max(totals.frames, summary.frames)  # the last reports come late or never
        elapsed_s = time.monotonic() - self._began
        busy_s = totals.busy_s
        cost = float(self._plan.work.sum())
        self._on_progress(
            Progress(
                videos=self._plan.num_tasks,
                videos_done=summary.done_now,
                videos_failed=summary.failed_now,
                frames=frames,
                masks=max(totals.masks, summary.object_frames),
                cost=cost,
                cost_done=self._cost_done
                + cost_under_way(
                    totals.frames + totals.masks,
                    summary.frames + summary.object_frames,
                    self._cost_done,
                    cost - self._cost_done,
                ),
                elapsed_s=elapsed_s,
                frames_per_s=self._rate.at(elapsed_s, frames),
                device_idle_share=None if busy_s is None else 1 - busy_s / totals.alive_s,
                is_starting=totals == Report(),
            )
        )

    def _totals(self) -> Report:
        try:
            totals: Report = ray.get(self._board.totals.remote(), timeout=BOARD_PATIENCE_S)
        except (RayError, TimeoutError) as error:  # it comes back by itself, with new reports
            log.debug("no reports: %s", error)
            return self._last_totals
        self._last_totals = totals
        return totals


class _Ticker:
    """Calls a function every second while its block runs, and once at the end."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            self._tick()
        self._tick()


def _count(finished: FinishedVideos, plan: Plan) -> tuple[int, int]:
    """How many rows of the manifest the dataset has as ok and as failed."""
    ok = failed = 0
    for ids, prints in plan.keys():
        is_ok, is_failed = finished.endings(ids, prints)
        ok += int(is_ok.sum())
        failed += int(is_failed.sum())
    return ok, failed
