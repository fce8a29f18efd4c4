"""Writing a dataset: finished videos, refinements and reviews, each exactly once.

Knows what may be committed; how a commit stays whole over several tables is dataset_log.py's
matter, where the protocol stands. A labelling (video, fingerprint) is committed once, whoever tries
it how often: what videos records as ok is skipped. Masks are put by actors before
(mask_objects.py); a driver that died between put and commit leaves them to `adopt`.
"""

import itertools
import logging
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from workflows.compaction import compact_one_batch
from workflows.data_files import read_files, sorted_rows, write_data_file
from workflows.dataset_log import Change, DatasetLog
from workflows.delta_log import Conflict
from workflows.finished import FinishedVideos, read_finished
from workflows.key_index import Keys, TableKeys, key_rows
from workflows.mask_objects import (
    check_rows,
    find_mask_object,
    mask_object_path,
    renumber_masks,
    with_revision,
)
from workflows.revisions import CurrentTracks, StaleRevision, read_current
from workflows.rows import (
    RUNS_SCHEMA,
    TRACKS_SCHEMA,
    VIDEOS_SCHEMA,
    DataFile,
    FailureReason,
    Review,
    Status,
    Track,
    VideoOutcome,
    outcomes_to_table,
    tracks_to_table,
)
from workflows.storage import Storage

log = logging.getLogger(__name__)

ADOPTERS = 16  # requests at once; each waits for the store, not for a core
ADOPTED_PER_COMMIT = 256
# small files that make it worth merging some, after a commit
SMALL_MASK_FILES = 1024
SMALL_ROW_FILES = 64
COMPACTED_BYTES = 64 * 2**20  # a few seconds of merging at most between two commits
ATTEMPT_COLUMNS = ("video_id", "fingerprint", "status", "run_id")


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What became of the outcomes of one call."""

    committed: tuple[str, ...]  # video ids, now in the dataset
    already: tuple[str, ...]  # recorded before, by whomever


class DatasetWriter:
    """The one who commits to a dataset: a driver, or a replica of the service.

    Any number of them may work on one dataset. Makes the dataset if there is none. Safe to share
    among threads. merge_small_files: whether commits now and then merge small files.
    """

    def __init__(self, storage: Storage, root: str, *, merge_small_files: bool = True) -> None:
        self.storage = storage
        self.root = root
        self._log = DatasetLog(storage, root)
        self._log.create()
        self._merge_small_files = merge_small_files
        self._attempts = TableKeys(_columns(VIDEOS_SCHEMA, *ATTEMPT_COLUMNS), _attempts)
        self._labelled = TableKeys(_columns(TRACKS_SCHEMA, "video_id"), key_rows)
        self._lock = threading.RLock()

    def commit(
        self, outcomes: Iterable[VideoOutcome], *, supersede_reviewed: bool = False
    ) -> CommitReport:
        """Add finished videos, those with masks as `write_mask_object` returned them.

        Skips what is recorded: a labelling that is ok, an attempt of the same run. Objects that a
        person prompted or accepted keep their labels unless supersede_reviewed. A refinement whose
        base is stale by now is recorded as failed.
        """
        given = list(outcomes)
        unwritten = [o.video_id for o in given if o.tracks and o.mask_object is None]
        if unwritten:
            raise ValueError(f"{unwritten}: tracks without masks; wanted write_mask_object before")
        new: list[VideoOutcome] = []

        def decide(number: int) -> Change | None:
            new[:] = self._unrecorded(given)
            return self._label_change(new, supersede_reviewed) if new else None

        with self._lock:
            self._log.commit(decide)
            self._merge_some()
        committed = tuple(outcome.video_id for outcome in new)
        already = tuple(o.video_id for o in given if o.video_id not in set(committed))
        return CommitReport(committed, already)

    def adopt(self, wanted: Iterable[tuple[str, str]]) -> CommitReport:
        """Commit those (video_id, fingerprint) whose masks were put by a job that died."""
        committed: list[str] = []
        already: list[str] = []
        with ThreadPoolExecutor(ADOPTERS) as pool:
            found = pool.map(lambda w: find_mask_object(self.storage, self.root, *w), wanted)
            outcomes = (outcome for outcome in found if outcome is not None)
            while batch := list(itertools.islice(outcomes, ADOPTED_PER_COMMIT)):
                report = self.commit(batch)
                committed += report.committed
                already += report.already
        return CommitReport(tuple(committed), tuple(already))

    def commit_revision(
        self,
        video_id: str,
        base_revision: int,
        tracks: Sequence[Track],
        masks: pa.Table,
        attempt: VideoOutcome | None = None,
    ) -> int:
        """Add new labels for some objects of a video, a refinement or an import; their revision.

        base_revision: the video's newest when the work began, 0 where nothing is labelled; raises
        StaleRevision if one of these objects has a newer one by now.
        masks: every frame of each object's span, also those that did not change (`merge_masks`); of
        objects that are removed or show masks of an earlier revision, none.
        attempt: a row for videos, needed where a video has none.
        """
        if not tracks:
            raise ValueError(f"{video_id}: a revision without tracks")
        check_rows(video_id, tracks, masks)
        name = f"revision-{uuid.uuid4().hex}"

        def decide(number: int) -> Change:
            current = self._current([video_id])[video_id]
            current.check_fresh(base_revision, [track.object_id for track in tracks])
            revision = current.newest_revision + 1
            path = mask_object_path(video_id, f"{name}-{revision}")
            rows = with_revision(masks, revision)
            file = write_data_file(self.storage, self._log.masks.folder, path, rows)
            return Change(
                masks=(file,) if rows.num_rows else (),
                tracks=tracks_to_table(current.number(tracks, revision, _now())),
                videos=_videos_table([attempt] if attempt else []),
            )

        return self._commit_revision(decide)

    def review(
        self,
        video_id: str,
        base_revision: int,
        review: Review,
        author: str,
        object_ids: Collection[int] | None = None,
    ) -> int:
        """Record a person's judgement of objects (all by default) as a new revision; its number.

        The masks stay those of the revision judged. Raises StaleRevision as `commit_revision`.
        """

        def decide(number: int) -> Change:
            current = self._current([video_id])[video_id]
            judged = current.reviewed(object_ids, review, author, _now())
            current.check_fresh(base_revision, [track.object_id for track in judged])
            return Change(masks=(), tracks=tracks_to_table(judged), videos=_videos_table([]))

        return self._commit_revision(decide)

    def newest_revisions(self, video_ids: Sequence[str]) -> dict[str, int]:
        """Of each video; 0 where nothing is labelled. The next labels are one more."""
        with self._lock:
            self._log.catch_up()
            return {v: current.newest_revision for v, current in self._current(video_ids).items()}

    def finished(self, retry_reasons: Collection[FailureReason] = ()) -> FinishedVideos:
        """What need not be labelled again; failures for a reason to retry count as not done."""
        with self._lock:
            self._log.catch_up()
            return read_finished(self._log.videos, retry_reasons)

    def record_run(self, run: Mapping[str, Any]) -> None:
        """Add a job's row, in RUNS_SCHEMA's columns, once for each run_id."""
        unknown = set(run) - set(RUNS_SCHEMA.names)
        if unknown or "run_id" not in run:
            raise ValueError(f"run {run.get('run_id')}: unknown columns {sorted(unknown)}")
        rows = pa.Table.from_pylist([dict(run)], schema=RUNS_SCHEMA)
        runs, path = self._log.runs, f"{uuid.uuid4().hex}.parquet"
        same_run = pc.field("run_id") == run["run_id"]
        with self._lock:
            while True:
                paths = runs.refresh().paths()
                if read_files(self.storage, runs.folder, paths, RUNS_SCHEMA, same_run).num_rows:
                    return
                file = write_data_file(self.storage, runs.folder, path, rows)
                try:
                    runs.commit(runs.sequence + 1, [file])
                except Conflict as e:
                    log.info("%s: run %s: %s", runs.folder, run["run_id"], e)

    def _commit_revision(self, decide: Callable[[int], Change]) -> int:
        with self._lock:
            change = self._log.commit(decide)
        assert change is not None  # decide always wants something
        revision: int = change.tracks["revision"][0].as_py()
        return revision

    def _unrecorded(self, outcomes: Iterable[VideoOutcome]) -> list[VideoOutcome]:
        """Those that videos does not know yet, the last of each labelling."""
        newest = {(o.video_id, o.fingerprint): o for o in outcomes}
        candidates = list(newest.values())
        known = self._attempts.refresh(self._log.videos)
        is_ok = known.contains((o.video_id, o.fingerprint, "") for o in candidates)
        is_same = known.contains((o.video_id, o.fingerprint, o.run_id) for o in candidates)
        return [o for o, seen in zip(candidates, is_ok | is_same, strict=True) if not seen]

    def _label_change(self, outcomes: Sequence[VideoOutcome], supersede_reviewed: bool) -> Change:
        labelled = self._labelled.refresh(self._log.tracks).contains(
            (outcome.video_id,) for outcome in outcomes
        )
        again = [o.video_id for o, is_known in zip(outcomes, labelled, strict=True) if is_known]
        current = self._current(again)
        masks: list[DataFile] = []
        tracks: list[Track] = []
        ended: list[VideoOutcome] = []
        for outcome in outcomes:
            before = current.get(outcome.video_id, CurrentTracks(outcome.video_id))
            is_refinement = outcome.request_id is not None
            if is_refinement and (stale := before.stale(outcome.tracks)) is not None:
                ended.append(_failed(outcome, stale))
                continue
            ended.append(outcome)
            kept = set() if supersede_reviewed or is_refinement else before.protected
            given = [track for track in outcome.tracks if track.object_id not in kept]
            tracks += before.number(given, before.newest_revision + 1, _now())
            if given and outcome.mask_object is not None and outcome.mask_object.num_rows:
                masks.append(self._masks_of(outcome, before.newest_revision + 1, kept))
        return Change(tuple(masks), tracks_to_table(tracks), _videos_table(ended))

    def _masks_of(self, outcome: VideoOutcome, revision: int, kept: Collection[int]) -> DataFile:
        """The file an actor put, or a corrected copy if other labels came in between."""
        assert outcome.mask_object is not None
        planned = {track.revision for track in outcome.tracks}
        without = {track.object_id for track in outcome.tracks} & set(kept)
        if planned == {revision} and not without:
            return outcome.mask_object
        return renumber_masks(self.storage, self.root, outcome.mask_object, revision, without)

    def _current(self, video_ids: Sequence[str]) -> dict[str, CurrentTracks]:
        return read_current(self._log.tracks, video_ids) if video_ids else {}

    def _merge_some(self) -> None:
        """So that a long job does not slow down with the number of its files."""
        if self._merge_small_files:
            for table in (self._log.masks, self._log.tracks, self._log.videos):
                limit = SMALL_MASK_FILES if table is self._log.masks else SMALL_ROW_FILES
                compact_one_batch(table, target_bytes=COMPACTED_BYTES, min_small_files=limit)


def merge_masks(before: pa.Table, changed: pa.Table) -> pa.Table:
    """Objects' masks on every frame: the changed rows, and the others as they were before."""
    kept = before.filter(pc.invert(pc.is_in(_places(before), _places(changed))))
    return sorted_rows(pa.concat_tables([kept.select(changed.column_names), changed]))


def _places(masks: pa.Table) -> pa.ChunkedArray:
    """Object and frame as one number."""
    object_id = pc.shift_left(masks["object_id"].cast(pa.int64()), 32)
    return pc.bit_wise_or(object_id, masks["frame_index"].cast(pa.int64()))


def _columns(schema: pa.Schema, *names: str) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


def _attempts(batch: pa.RecordBatch) -> Keys:
    """What makes an attempt a repetition: the labelling is ok, or failed in the same run."""
    for video_id, fingerprint, status, run_id in key_rows(batch):
        yield video_id, fingerprint, "" if status == Status.OK else run_id


def _failed(outcome: VideoOutcome, stale: StaleRevision) -> VideoOutcome:
    return replace(
        outcome,
        status=Status.FAILED,
        reason=FailureReason.STALE_REVISION,
        detail=str(stale),
        tracks=(),
        mask_object=None,
    )


def _videos_table(outcomes: Sequence[VideoOutcome]) -> pa.Table:
    return outcomes_to_table(outcomes).select(VIDEOS_SCHEMA.names)


def _now() -> datetime:
    return datetime.now(UTC)
