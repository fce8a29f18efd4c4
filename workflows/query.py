"""Reading a dataset: SQL over all of it, one video's masks, any earlier state. Never writes.

Knows nothing of how commits are made, only that a view (dataset_log.py) is whole, and nothing of
what SQL may not do (read_only_sql.py). DuckDB does the SQL over pyarrow datasets, so disk and
object stores are read the same way, and skips files by the video ids in the log. The current row of
an object is the one with its highest revision; it is found in tracks, which is small, and masks
join it.
"""

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import SteadyDataset, open_files, read_files, sorted_rows
from workflows.dataset_log import DatasetLog
from workflows.delta_log import TableLog, may_hold
from workflows.read_only_sql import QueryError as QueryError
from workflows.read_only_sql import check_only_reads, lock
from workflows.rows import MASKS_SCHEMA
from workflows.storage import NotFound, Storage

if TYPE_CHECKING:
    from workflows.decoded_masks import DecodedMasks

ANSWERED_ROWS = 65_536  # of an answer at once

At = datetime | int  # a time, or a revision: each object as of its newest one up to that
LAST_REVISION = 2**31 - 1  # that a row could hold

# the tables as they are; not among the names that SHOW TABLES tells
FILES = "_files"
# inner joins, not windows or semi-joins: DuckDB passes a filter on video_id through to both sides
VIEWS = """
    CREATE VIEW tracks AS SELECT * FROM _files.tracks WHERE {tracks_at};
    CREATE VIEW videos AS
        SELECT * EXCLUDE (request_id) FROM _files.videos
        WHERE request_id IS NULL AND {videos_at};
    CREATE VIEW refinements AS
        SELECT * FROM _files.videos WHERE request_id IS NOT NULL AND {videos_at};
    CREATE VIEW runs AS SELECT * FROM _files.runs;
    CREATE VIEW masks AS SELECT written.* FROM _files.masks AS written {masks_at};
    CREATE VIEW current_tracks AS
        SELECT tracks.* FROM tracks JOIN (
            SELECT video_id, object_id, max(revision) AS revision FROM tracks GROUP BY ALL
        ) USING (video_id, object_id, revision) WHERE NOT coalesce(tracks.removed, false);
    CREATE VIEW current_masks AS
        SELECT written.* FROM _files.masks AS written JOIN (
            SELECT video_id, object_id, arg_max(masks_revision, revision) AS revision
            FROM tracks GROUP BY ALL
        ) USING (video_id, object_id, revision);
"""
MASKS_AT = """JOIN (
    SELECT DISTINCT video_id, object_id, masks_revision AS revision FROM tracks
) USING (video_id, object_id, revision)"""


@dataclass(frozen=True, slots=True)
class View:
    """The files of one complete commit."""

    number: int
    files: Mapping[str, pa.Table]


class Answer(Iterable[pa.RecordBatch]):
    """The batches of an answer, each read when it is asked for; once."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self.schema: pa.Schema = reader.schema
        self._reader = reader

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Raises QueryError for what goes wrong on the way, such as a value that does not fit."""
        while True:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return
            except (OSError, pa.ArrowException, duckdb.Error) as e:
                raise QueryError(f"{e}") from e
            yield batch


class Dataset:
    """A dataset as of its newest commit, until `refresh`. Safe to share among threads.

    Raises NotFound where there is none.
    """

    def __init__(self, uri: str, storage: Storage | None = None) -> None:
        self.uri = uri
        self.storage = storage or Storage()
        self._log = DatasetLog(self.storage, uri)
        self._lock = threading.Lock()
        self._view = self._newest()

    def refresh(self) -> "Dataset":
        """See the newest commit."""
        with self._lock:
            self._view = self._newest()
        return self

    @property
    def version(self) -> int:
        """The number of the commit seen; each commit is one more."""
        return self._view.number

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        at: At | None = None,
    ) -> pa.Table:
        """The answer to one SELECT over masks, tracks, videos, refinements, runs, current_ views.

        parameters: values for the query's `?`, or by name for its `$name`. at: an earlier state of
        labels.
        Raises QueryError for a statement that would write or read anything else, or is wrong.
        """
        with self.answer(query, parameters, at) as batches:
            return pa.Table.from_batches(batches, batches.schema)

    @contextmanager
    def answer(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        at: At | None = None,
    ) -> Iterator["Answer"]:
        """As `sql`, batch by batch while the block lasts: for answers that memory does not hold."""
        try:
            with duckdb.connect() as connection:
                check_only_reads(connection, query)
                self._register(connection, at)
                reader = connection.sql(query, params=parameters).to_arrow_reader(ANSWERED_ROWS)
                yield Answer(reader)
        except duckdb.Error as e:
            raise QueryError(f"{e}") from e

    def masks(
        self,
        video_id: str,
        object_ids: Collection[int] | None = None,
        frames: tuple[int, int] | None = None,
        at: At | None = None,
    ) -> pa.Table:
        """Current masks of a video, or those it had; MASKS_SCHEMA, by object and frame.

        frames: first and last, both included.
        """
        tracks = self.tracks([video_id], at)
        shown = [
            (pc.field("object_id") == object_id) & (pc.field("revision") == revision)
            for object_id, revision in zip(
                tracks["object_id"].to_pylist(), tracks["masks_revision"].to_pylist(), strict=True
            )
            if object_ids is None or object_id in object_ids
        ]
        if not shown:
            return MASKS_SCHEMA.empty_table()
        where = (pc.field("video_id") == video_id) & _any(shown)
        if frames is not None:
            first, last = frames
            where &= (pc.field("frame_index") >= first) & (pc.field("frame_index") <= last)
        return sorted_rows(self._rows(self._log.masks, [video_id], where))

    def decoded(
        self,
        video_id: str,
        object_ids: Collection[int] | None = None,
        frames: tuple[int, int] | None = None,
        at: At | None = None,
    ) -> "DecodedMasks":
        """As `masks`, but pixels: an array (objects, frames, rows, columns) of as many bytes."""
        from workflows.decoded_masks import decode_masks  # loads torch, which SQL can do without

        return decode_masks(self.masks(video_id, object_ids, frames, at))

    def history(self, video_id: str, object_id: int | None = None) -> pa.Table:
        """All revisions of a video's objects, or of one, oldest first; TRACKS_SCHEMA."""
        where = pc.field("video_id") == video_id
        if object_id is not None:
            where &= pc.field("object_id") == object_id
        rows = self._rows(self._log.tracks, [video_id], where)
        return rows.sort_by([("revision", "ascending"), ("object_id", "ascending")])

    def tracks(
        self,
        video_ids: Sequence[str] | None = None,
        at: At | None = None,
        with_removed: bool = False,
    ) -> pa.Table:
        """The current row of each object, or the one it had; TRACKS_SCHEMA, by video and object.

        with_removed: also of objects that were taken out of the labels.
        """
        where = _tracks_until(at)
        if video_ids is not None:
            where &= pc.field("video_id").isin(list(video_ids))
        rows = sorted_rows(self._rows(self._log.tracks, video_ids, where))
        rows = rows.filter(_is_last_of(rows, ["video_id", "object_id"]))
        return (
            rows if with_removed else rows.filter(pc.invert(pc.fill_null(rows["removed"], False)))
        )

    def videos(self, video_ids: Sequence[str] | None = None) -> pa.Table:
        """The last attempt at labelling each video, by video; VIDEOS_SCHEMA."""
        where = pc.field("request_id").is_null()
        if video_ids is not None:
            where &= pc.field("video_id").isin(list(video_ids))
        rows = self._rows(self._log.videos, video_ids, where)
        rows = rows.sort_by([("video_id", "ascending"), ("finished_at", "ascending")])
        return rows.filter(_is_last_of(rows, ["video_id"]))

    def video(self, video_id: str) -> dict[str, Any]:
        """The last attempt at one video as a row. Raises NotFound if there was none."""
        for row in self.videos([video_id]).to_pylist():
            return dict(row)
        raise NotFound(f"{self.uri}: no video {video_id!r}")

    def _newest(self) -> View:
        number = self._log.view()
        tables = (self._log.masks, self._log.tracks, self._log.videos, self._log.runs.refresh())
        return View(number, {table.name: table.files() for table in tables})

    def _rows(
        self, table: TableLog, video_ids: Collection[str] | None, where: pc.Expression
    ) -> pa.Table:
        files = self._view.files[table.name]
        if video_ids is not None:
            files = files.filter(may_hold(files, video_ids))
        paths = files["path"].to_pylist()
        return read_files(self.storage, table.folder, paths, table.schema, where)

    def _register(self, connection: duckdb.DuckDBPyConnection, at: At | None) -> None:
        """Give a database its views and shut it off from everything else."""
        view = self._view
        connection.execute(f"CREATE SCHEMA {FILES}; SET schema = '{FILES}'")
        for table in (self._log.masks, self._log.tracks, self._log.videos, self._log.runs):
            files = self._scannable(table, view.files[table.name])
            connection.from_arrow(files).create_view(table.name)
        connection.execute("SET schema = 'main'")
        connection.execute(VIEWS.format(**_conditions(at)))
        lock(connection)

    def _scannable(self, table: TableLog, files: pa.Table) -> SteadyDataset:
        """Files that say which videos they hold, so that a scan opens only those it needs."""
        ranges = zip(
            files["min_video_id"].to_pylist(), files["max_video_id"].to_pylist(), strict=True
        )
        video_id = pc.field("video_id")
        guarantees = [
            None if low is None or high is None else (video_id >= low) & (video_id <= high)
            for low, high in ranges
        ]
        paths = files["path"].to_pylist()
        return open_files(self.storage, table.folder, paths, table.schema, guarantees)


def parse_at(text: str) -> At:
    """A revision number or an ISO time, which is UTC unless it says. Raises QueryError."""
    if text.isdecimal() and int(text) <= LAST_REVISION:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(
            f"{text!r}: wanted an ISO time such as 2026-01-31T12:00:00 (UTC unless it says) or a "
            "revision number"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _conditions(at: At | None) -> dict[str, str]:
    if at is None:
        return {"tracks_at": "true", "videos_at": "true", "masks_at": ""}
    if isinstance(at, int):
        return {"tracks_at": f"revision <= {at}", "videos_at": "true", "masks_at": MASKS_AT}
    moment = f"TIMESTAMPTZ '{_aware(at).isoformat()}'"
    return {
        "tracks_at": f"created_at <= {moment}",
        "videos_at": f"finished_at <= {moment}",
        "masks_at": MASKS_AT,
    }


def _tracks_until(at: At | None) -> pc.Expression:
    if at is None:
        return pc.scalar(True)
    if isinstance(at, int):
        return pc.field("revision") <= at
    return pc.field("created_at") <= pa.scalar(_aware(at), pa.timestamp("us", tz="UTC"))


def _aware(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise QueryError(f"at {at.isoformat()}: wanted a time with a time zone")
    return at


def _is_last_of(rows: pa.Table, keys: Sequence[str]) -> pa.Array:
    """Of sorted rows, whether each is the last with its keys."""
    if rows.num_rows == 0:
        return pa.array([], pa.bool_())
    differs = np.zeros(rows.num_rows - 1, bool)
    for key in keys:
        column = rows[key].combine_chunks()
        differs |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return pa.array(np.append(differs, True))


def _any(conditions: Sequence[pc.Expression]) -> pc.Expression:
    result = conditions[0]
    for condition in conditions[1:]:
        result = result | condition
    return result
