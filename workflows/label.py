"""The bulk pipeline: what is left of a manifest, over a pool of actors, into the dataset.

The only module that imports ray.data. One row is one video is one task; masks are put by the
actor that made them and only an outcome row travels back, to be committed in batches. Of every
video of the manifest the run ends with an outcome: `Summary.check` counts them.
"""

import json
import logging
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from sam2model.checkpoint import locate, weights_sha256
from workflows.config import LabelConfig, to_tree
from workflows.manifest import manifest_files, read_manifest
from workflows.prompt_rows import fingerprint
from workflows.results import DatasetWriter
from workflows.rows import (
    MANIFEST_SCHEMA,
    FailureReason,
    Status,
    VideoOutcome,
    VideoRequest,
    outcomes_from_table,
    outcomes_to_table,
)
from workflows.storage import Storage
from workflows.video_labeller import (
    LabellingJob,
    MaskEngine,
    VideoLabeller,
    code_version,
    open_engine,
)

log = logging.getLogger(__name__)

TASK_SCHEMA = MANIFEST_SCHEMA.append(pa.field("fingerprint", pa.string()))
ROWS_IN_A_BLOCK = 1024  # of the driver's tables, before they are cut into one row each
ATTEMPTS_OF_A_TASK = 2  # after a worker died: a video that kills its worker must not go on for ever

EngineFactory = Callable[[LabelConfig], MaskEngine]


@dataclass(slots=True)
class Summary:
    """What became of a manifest."""

    run_id: str
    videos: int = 0  # rows of the manifest
    skipped: int = 0  # done by earlier runs
    adopted: int = 0  # finished by a run that died before it could say so
    ok: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    object_frames: int = 0
    video_s: float = 0.0
    wall_s: float = 0.0

    @property
    def failed(self) -> int:
        return self.failures.total()

    def add(self, outcome: VideoOutcome) -> None:
        """Count one outcome."""
        if outcome.status == Status.FAILED:
            assert outcome.reason is not None
            self.failures[outcome.reason] += 1
            return
        self.ok += 1
        self.frames += outcome.num_frames_decoded or 0
        self.object_frames += outcome.mask_object.num_rows if outcome.mask_object else 0
        self.video_s += outcome.duration_s or 0.0

    def check(self) -> None:
        """Raise RuntimeError unless every row of the manifest is accounted for."""
        accounted = self.skipped + self.adopted + self.ok + self.failed
        if accounted != self.videos:
            raise RuntimeError(
                f"{self.videos} videos in the manifest, but {self.skipped} skipped + "
                f"{self.adopted} adopted + {self.ok} ok + {self.failed} failed = {accounted}"
            )

    def to_json(self) -> dict[str, object]:
        """For the last line of standard output."""
        return {
            "run_id": self.run_id,
            "videos": self.videos,
            "skipped": self.skipped,
            "adopted": self.adopted,
            "ok": self.ok,
            "failed": self.failed,
            "failures": dict(self.failures),
            "frames": self.frames,
            "masks": self.object_frames,
            "wall_s": round(self.wall_s, 2),
            "frames_per_s": round(self.frames / self.wall_s, 2) if self.wall_s else 0.0,
        }


def label(
    config: LabelConfig,
    engine_factory: EngineFactory = open_engine,
    progress: Callable[[Summary, int], None] = lambda summary, left: None,
) -> Summary:
    """Label what a manifest asks for and the dataset does not have.

    progress is called after every outcome with the counts so far and the videos left. Ray must
    be initialised, or is started on this machine.
    """
    began, started_at = time.monotonic(), datetime.now(UTC)
    storage = Storage(config.storage)
    manifest_files(config.manifest, storage)  # before anything is made
    job = LabellingJob(
        config=config,
        run_id=f"label-{uuid.uuid4().hex[:12]}",
        weights_sha256=weights_sha256(locate(config.model.checkpoint, revision=None, token=None)),
        code_version=code_version(),
    )
    writer = DatasetWriter(storage, config.output)
    summary = Summary(job.run_id)
    tasks = _what_is_left(job, storage, writer, summary)
    if tasks.num_rows:
        committer = _Committer(config, writer, summary, tasks.num_rows, progress)
        lost = committer.take(_run(job, engine_factory, tasks), tasks)
        if lost.num_rows:
            # Their worker died. Each again by itself, so that the one to blame shows.
            log.warning(
                "%d videos were lost with their worker; each runs again alone", lost.num_rows
            )
            lost = committer.take(_run(job, engine_factory, lost, alone=True), lost)
        committer.give_up(job, lost)
    summary.wall_s = time.monotonic() - began
    summary.check()
    writer.record_run(_run_row(job, config, summary, started_at))
    return summary


def _what_is_left(
    job: LabellingJob, storage: Storage, writer: DatasetWriter, summary: Summary
) -> pa.Table:
    """Rows of the manifest that no run has labelled, with their fingerprints, longest first."""
    config = job.config
    finished = writer.finished(config.retry_reasons)
    pieces: list[pa.Table] = []
    for batch in read_manifest(config.manifest, storage):
        summary.videos += batch.num_rows
        rows = batch.to_pylist()
        prints = [
            fingerprint(
                row["prompts"] or (),
                job.weights_sha256,
                config.inference_config,
                span=(row["first_frame"], row["last_frame"]),
            )
            for row in rows
        ]
        done = finished.contains([row["video_id"] for row in rows], prints)
        piece = pa.Table.from_batches([batch]).append_column("fingerprint", pa.array(prints))
        pieces.append(piece.filter(pa.array(~done)))
        summary.skipped += int(done.sum())
    left = pa.concat_tables([TASK_SCHEMA.empty_table(), *pieces], promote_options="permissive")
    adopted = writer.adopt(_keys(left))
    if adopted.committed:
        summary.adopted = len(adopted.committed)
        log.info("adopted %d videos that an earlier run had finished", summary.adopted)
        left = left.filter(pc.invert(pc.is_in(left["video_id"], pa.array(adopted.committed))))
    return left.take(pa.array(_longest_first(left), pa.int64()))


def _longest_first(tasks: pa.Table) -> list[int]:
    """The order in which to begin: by priority, then by how much there seems to be to do."""

    def work(index: int) -> tuple[int, float]:
        row = rows[index]
        objects = len({p["object_id"] for p in row["prompts"] or ()})
        if row["last_frame"] is not None:
            return row["priority"] or 0, (row["last_frame"] - (row["first_frame"] or 0)) * objects
        return row["priority"] or 0, 0.0

    columns = ["prompts", "first_frame", "last_frame", "priority"]
    rows = tasks.select(columns).to_pylist()
    return sorted(range(len(rows)), key=work, reverse=True)


def _keys(tasks: pa.Table) -> list[tuple[str, str]]:
    names = tasks["video_id"].to_pylist(), tasks["fingerprint"].to_pylist()
    return list(zip(*names, strict=True))


class LabelActor:
    """A process of the pool: one model, one engine, several videos at once."""

    def __init__(self, job: LabellingJob, engine_factory: EngineFactory) -> None:
        self._labeller = VideoLabeller(job, engine_factory(job.config))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One task row to one outcome row; called from several threads."""
        outcomes = []
        for row in batch.to_pylist():
            request = VideoRequest.from_row(row)
            outcomes.append(self._labeller.label(request, row["fingerprint"]))
        return outcomes_to_table(outcomes)


def _run(
    job: LabellingJob, engine_factory: EngineFactory, tasks: pa.Table, alone: bool = False
) -> Iterator[VideoOutcome]:
    """Outcomes in the order in which videos end. alone: one video at a time in each actor."""
    in_flight = 1 if alone else job.config.compute.videos_in_flight
    _configure(DataContext.get_current())
    blocks = [
        tasks.slice(start, ROWS_IN_A_BLOCK).combine_chunks()
        for start in range(0, tasks.num_rows, ROWS_IN_A_BLOCK)
    ]
    with warnings.catch_warnings():
        # max_restarts and max_task_retries have no other name; Ray is pinned for them
        warnings.simplefilter("ignore", RayDeprecationWarning)
        outcomes = _pipeline(job, engine_factory, blocks, in_flight, alone)
    for block in outcomes.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from outcomes_from_table(block)


def _pipeline(
    job: LabellingJob,
    engine_factory: EngineFactory,
    blocks: list[pa.Table],
    in_flight: int,
    alone: bool,
) -> ray.data.Dataset:
    compute = job.config.compute
    return (
        ray.data.from_arrow(blocks)
        # A block is a task: without this one actor would get the whole manifest.
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            LabelActor,
            fn_constructor_args=(job, engine_factory),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=compute.actors,
                max_size=compute.max_actors or compute.actors,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
                enable_true_multi_threading=True,
            ),
            num_gpus=compute.gpus_per_actor or None,
            num_cpus=compute.cpus_per_actor,
            max_restarts=-1,
            max_task_retries=0 if alone else ATTEMPTS_OF_A_TASK,
        )
    )


def _configure(context: DataContext) -> None:
    """What Ray Data does otherwise has lost or stopped whole runs; all of it is set here."""
    context.target_max_block_size = None  # one block for each task
    context.max_errored_blocks = -1  # a task that is given up costs its video, not the run
    context.execution_no_progress_timeout_s = -1  # a long video is no stall; videos have deadlines
    context.max_consecutive_actor_init_deaths = 5
    context.actor_init_retry_on_errors = True
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # else pools never grow
    context.print_on_execution_start = False
    context.enable_progress_bars = False


class _Committer:
    """Outcomes into the dataset, by count or by time, whichever comes first."""

    def __init__(
        self,
        config: LabelConfig,
        writer: DatasetWriter,
        summary: Summary,
        left: int,
        progress: Callable[[Summary, int], None],
    ) -> None:
        self._config = config
        self._writer = writer
        self._summary = summary
        self._left = left
        self._progress = progress
        self._waiting: list[VideoOutcome] = []
        self._last_commit = time.monotonic()

    def take(self, outcomes: Iterator[VideoOutcome], tasks: pa.Table) -> pa.Table:
        """Commit outcomes as they come; the tasks that had none."""
        seen: set[tuple[str, str]] = set()
        try:
            for outcome in outcomes:
                seen.add((outcome.video_id, outcome.fingerprint))
                self._add(outcome)
        finally:  # also when the run is stopped: what is finished is kept
            self._commit()
        return tasks.filter(pa.array([key not in seen for key in _keys(tasks)]))

    def give_up(self, job: LabellingJob, tasks: pa.Table) -> None:
        """Record videos whose worker died twice, the second time with nothing else in it."""
        for row in tasks.select(["video_id", "video_uri", "fingerprint"]).to_pylist():
            self._add(
                VideoOutcome(
                    **row,
                    status=Status.FAILED,
                    reason=FailureReason.INTERNAL,
                    detail="the worker process died with this video alone in it",
                    run_id=job.run_id,
                    finished_at=datetime.now(UTC),
                    code_version=job.code_version,
                )
            )
        self._commit()

    def _add(self, outcome: VideoOutcome) -> None:
        self._summary.add(outcome)
        self._waiting.append(outcome)
        self._left -= 1
        late = time.monotonic() - self._last_commit >= self._config.commit.seconds
        if late or len(self._waiting) >= self._config.commit.videos:
            self._commit()
        self._progress(self._summary, self._left)

    def _commit(self) -> None:
        if self._waiting:
            self._writer.commit(self._waiting, supersede_reviewed=self._config.supersede_reviewed)
            self._waiting = []
        self._last_commit = time.monotonic()


def _run_row(
    job: LabellingJob, config: LabelConfig, summary: Summary, started_at: datetime
) -> dict[str, Any]:
    price = config.price.per_actor_hour
    actors = config.compute.actors
    return {
        "run_id": summary.run_id,
        "job": "label",
        "started_at": started_at,
        "finished_at": datetime.now(UTC),
        "config": json.dumps(to_tree(config), sort_keys=True),
        "manifest_uri": config.manifest,
        "code_version": job.code_version,
        "videos_requested": summary.videos,
        "videos_skipped": summary.skipped + summary.adopted,
        "videos_ok": summary.ok,
        "videos_failed": summary.failed,
        "failures": list(summary.failures.items()),
        "frames": summary.frames,
        "object_frames": summary.object_frames,
        "video_s": summary.video_s,
        "wall_s": summary.wall_s,
        "cost": None if price is None else price * actors * summary.wall_s / 3600,
        "currency": None if price is None else config.price.currency,
    }
