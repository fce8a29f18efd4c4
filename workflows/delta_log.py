"""One Delta Lake table as numbered commits: compare, then swap. Knows nothing of what is in it.

Delta Lake refuses a commit when another with the same application id arrived since the snapshot it
was made from. All writers of a table use one id and number their commits, so a commit succeeds
only if nothing was committed since its author looked, wherever that author runs.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from workflows.retry import is_transient, one_line
from workflows.rows import DataFile
from workflows.storage import NotFound, Storage, Unreadable
from workflows.uris import is_local, join_uri, local_path

log = logging.getLogger(__name__)

Result = TypeVar("Result")

COMMITS = "maskmill"  # the application id that numbers commits of rows
COMPACTIONS = "maskmill.compaction"  # another, so that compacting never holds up a commit
NOTE = "maskmill"  # our key in a commit's metadata
TABLE_CONFIGURATION = {
    "delta.checkpointInterval": "20",  # whoever looks replays at most so many small files
    "delta.logRetentionDuration": "interval 30 days",
    # how long the log remembers a replaced file, not how long it is kept: a job may replace
    # millions, and every checkpoint names each of them anew
    "delta.deletedFileRetentionDuration": "interval 10 minutes",
}


class Conflict(Exception):
    """Someone else committed first, or it is unknown whether this commit arrived: look again."""


class TableLog:
    """The log of one table, as of the last `refresh` or `rewind`. For one thread at a time."""

    def __init__(self, storage: Storage, root: str, name: str, schema: pa.Schema) -> None:
        self.storage = storage
        self.name = name
        self.schema = schema
        self.folder = join_uri(root, name)
        self._address = str(local_path(self.folder)) if is_local(self.folder) else self.folder
        self._table: DeltaTable | None = None
        self._numbers: dict[tuple[int, str], int] = {}  # by version and application id

    def create(self) -> None:
        """Make the table unless it is there; several may try at once."""

        def attempt(_: float) -> None:
            try:
                DeltaTable.create(
                    self._address,
                    self.schema,
                    mode="ignore",
                    configuration=TABLE_CONFIGURATION,
                    storage_options=self.storage.delta_options(self.folder),
                )
            except CommitFailedError:
                log.debug("%s: somebody else created it", self.folder)

        self._retried(attempt)

    def refresh(self) -> "TableLog":
        """See the newest commit. Raises NotFound where there is no table."""

        def attempt(_: float) -> DeltaTable:
            table, self._table = self._table, None  # a refresh cut short leaves nothing half done
            if table is None:
                return self._open()
            table.update_incremental()
            return table

        self._table = self._retried(attempt)
        return self

    def rewind(self, sequence: int) -> "TableLog":
        """See the newest commit numbered `sequence` or less."""
        table = self.table

        def attempt(_: float) -> None:
            while self.sequence > sequence:
                table.load_as_version(table.version() - 1)

        self._retried(attempt)
        return self

    @property
    def table(self) -> DeltaTable:
        if self._table is None:
            self.refresh()
        assert self._table is not None  # refresh sets it or raises
        return self._table

    @property
    def sequence(self) -> int:
        """The number of the last commit of rows; 0 before the first."""
        return self._number(COMMITS)

    def files(self, video_ids: Collection[str] | None = None) -> pa.Table:
        """path, size_bytes, num_rows, min_video_id, max_video_id of every file.

        With video_ids, only of files that may hold rows of one of them.
        """
        actions = pa.table(self.table.get_add_actions(flatten=True))
        absent = pa.nulls(actions.num_rows, pa.string())
        names = actions.column_names
        files = pa.table(
            {
                "path": actions["path"].cast(pa.string()),
                "size_bytes": actions["size_bytes"],
                "num_rows": actions["num_records"],
                "min_video_id": actions["min.video_id"] if "min.video_id" in names else absent,
                "max_video_id": actions["max.video_id"] if "max.video_id" in names else absent,
            }
        )
        return files if video_ids is None else files.filter(may_hold(files, video_ids))

    def paths(self, video_ids: Collection[str] | None = None) -> list[str]:
        paths: list[str] = self.files(video_ids)["path"].to_pylist()
        return paths

    def note(self, sequence: int) -> dict[str, Any]:
        """What the author of commit `sequence` wrote down with it."""
        for limit in (3, 50, None):  # nearly always the last commit
            for commit in self.table.history(limit):
                note = commit.get(NOTE)
                if note and note["sequence"] == sequence:
                    return dict(note)
        raise NotFound(f"{self.folder}: commit {sequence} is not in the log")

    def commit(
        self,
        sequence: int,
        add: Sequence[DataFile],
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Add files as commit number `sequence`, which must follow the one seen here.

        Raises Conflict; then only `refresh` tells what happened.
        """
        self._commit(COMMITS, sequence, _adds(add, True), {**(note or {}), "sequence": sequence})

    def replace(self, remove: Sequence[str], add: Sequence[DataFile]) -> None:
        """Exchange files for others with the same rows. Raises Conflict if others did so too."""
        now_ms = int(time.time() * 1000)
        actions = [RemoveAction(path, False, now_ms) for path in remove]
        number = self._number(COMPACTIONS) + 1
        self._commit(COMPACTIONS, number, [*actions, *_adds(add, False)], None)

    def vacuum(self, keep_hours: float) -> int:
        """Delete files that no version younger than this needs, and forgotten ones; how many."""
        deleted = self._retried(
            lambda _: self.table.vacuum(
                math.ceil(keep_hours), dry_run=False, enforce_retention_duration=False, full=True
            )
        )
        return len(deleted)

    def _commit(self, app: str, number: int, actions: list[Any], note: Any) -> None:
        if self._number(app) != number - 1:
            # Delta Lake would let this pass: it compares with the snapshot, not with the number
            raise Conflict(f"{self.folder}: {app} is at {self._number(app)}; wanted {number - 1}")
        properties = CommitProperties(
            app_transactions=[Transaction(app, number)],
            custom_metadata={NOTE: note} if note else None,
        )
        try:
            self.table.create_write_transaction(
                actions, "append", self.schema, commit_properties=properties
            )
        except (OSError, DeltaError) as e:
            if isinstance(e, CommitFailedError) or is_transient(e):
                raise Conflict(f"{self.folder}: {one_line(e)}") from e
            raise Unreadable(f"{self.folder}: {one_line(e)}") from e

    def _retried(self, attempt: Callable[[float], Result]) -> Result:
        try:
            return self.storage.retry.call(self.folder, attempt)
        except (OSError, DeltaError) as e:
            raise Unreadable(f"{self.folder}: {one_line(e)}") from e

    def _number(self, app: str) -> int:
        """Remembered, for deltalake reads it from the log files since the last checkpoint."""
        key = (self.table.version(), app)
        if key not in self._numbers:
            self._numbers = {k: n for k, n in self._numbers.items() if k[0] == key[0]}
            self._numbers[key] = self.table.transaction_version(app) or 0
        return self._numbers[key]

    def _open(self) -> DeltaTable:
        try:
            return DeltaTable(
                self._address, storage_options=self.storage.delta_options(self.folder)
            )
        except TableNotFoundError as e:
            raise NotFound(f"{self.folder}: no table of a dataset here") from e


def _adds(files: Sequence[DataFile], data_change: bool) -> list[AddAction]:
    now_ms = int(time.time() * 1000)
    return [
        AddAction(file.path, file.size_bytes, {}, now_ms, data_change, file.stats) for file in files
    ]


def may_hold(files: pa.Table, video_ids: Collection[str]) -> pa.ChunkedArray:
    """Which files may hold one of the videos; a file without statistics may hold any."""
    low, high = files["min_video_id"], files["max_video_id"]
    keep = pc.or_(pc.is_null(low), pc.is_null(high))
    for video_id in video_ids:
        inside = pc.and_(pc.less_equal(low, video_id), pc.greater_equal(high, video_id))
        keep = pc.or_(keep, pc.fill_null(inside, False))
    return keep


def note_of_files(**files: DataFile | None) -> dict[str, Any]:
    """Files by table, as a note keeps them."""
    return {
        name: file and {field: getattr(file, field) for field in file.__slots__}
        for name, file in files.items()
    }


def file_in_note(note: Mapping[str, Any], name: str) -> DataFile | None:
    """The inverse of `note_of_files`, for one table."""
    return DataFile(**note[name]) if note.get(name) else None
