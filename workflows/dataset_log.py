"""Several tables, one history: how a dataset's commits stay whole.

Delta Lake commits one table at a time, so every commit of rows has a number, the same in all three
tables, and goes in this order:
1. The new rows of tracks and videos are put as files that no log names.
2. masks commits number n: its mask files, and a note naming the files of step 1. Whoever commits n
   first wins, others look again (delta_log.py). From here on the commit is decided.
3. tracks, then videos, commit number n: the file that the note names.
A writer that dies before 2 leaves nothing but unnamed files. One that dies after it is completed by
the next writer, of whatever kind, from the note alone, before that one commits anything.
A reader opens videos first and takes of tracks and masks the versions with the number of videos:
a video is there with all its tracks and masks, or not at all.
Nothing else is told apart here: who may commit what is decided in results.py.
"""

import logging
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from workflows.data_files import write_data_file
from workflows.delta_log import Conflict, TableLog, file_in_note, note_of_files
from workflows.rows import (
    MASKS_SCHEMA,
    RUNS_SCHEMA,
    TRACKS_SCHEMA,
    VIDEOS_SCHEMA,
    DataFile,
)
from workflows.storage import NotFound, Storage, StorageError
from workflows.uris import is_local, join_uri

log = logging.getLogger(__name__)

MAX_TRIES = 100  # each lost race means that somebody else's commit went through
MAX_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit adds."""

    masks: tuple[DataFile, ...]
    tracks: pa.Table
    videos: pa.Table


class DatasetLog:
    """The tables of a dataset and their common history. For one thread at a time."""

    def __init__(self, storage: Storage, root: str) -> None:
        self.storage = storage
        self.root = root
        self.masks = TableLog(storage, root, "masks", MASKS_SCHEMA)
        self.tracks = TableLog(storage, root, "tracks", TRACKS_SCHEMA)
        self.videos = TableLog(storage, root, "videos", VIDEOS_SCHEMA)
        self.runs = TableLog(storage, root, "runs", RUNS_SCHEMA)

    def create(self) -> None:
        """Make the tables unless they are there. Raises StorageError where commits would be unsafe.

        masks comes last: where it is, the others are.
        """
        try:
            self.masks.refresh()
        except NotFound:
            self._check_exclusive_puts()
            for table in (self.runs, self.videos, self.tracks, self.masks):
                table.create()

    def commit(self, decide: Callable[[int], Change | None]) -> Change | None:
        """Commit what `decide` wants, exactly once; None if it wants nothing.

        decide(number) sees the tables as they are and is asked again whenever somebody else
        committed first. Errors it raises end the attempt with nothing committed.
        """
        commit_id = uuid.uuid4().hex
        tried: dict[int, Change] = {}
        for _ in range(MAX_TRIES):
            last = self.catch_up()
            if (landed := self._landed(commit_id, tried, last)) is not None:
                return landed
            change = decide(last + 1)
            if change is None:
                return None
            number, tried[last + 1] = last + 1, change
            try:
                note = self._decide_commit(number, commit_id, change)
            except Conflict as e:
                log.info("%s: commit %d: %s", self.root, number, e)
                self.storage.retry.sleep(random.uniform(0, MAX_WAIT_S * len(tried) / MAX_TRIES))
            else:
                for table in (self.tracks, self.videos):
                    self._complete(table, number, note)
                return change
        raise StorageError(f"{self.root}: lost {MAX_TRIES} races to commit")

    def catch_up(self) -> int:
        """See the newest commit and complete it if its author did not; its number."""
        last = self.masks.refresh().sequence
        for table in (self.tracks, self.videos):
            if table.refresh().sequence < last:
                self._complete(table, last, self.masks.note(last))
                table.refresh()
        return last

    def view(self) -> int:
        """See the newest complete commit, as a reader who changes nothing; its number."""
        number = self.videos.refresh().sequence
        for table in (self.tracks, self.masks):
            table.refresh().rewind(number)
        return number

    def _decide_commit(self, number: int, commit_id: str, change: Change) -> dict[str, Any]:
        """Steps 1 and 2; the note of the commit."""
        written = {
            table.name: write_data_file(
                self.storage, table.folder, f"{number:010d}-{commit_id}.parquet", rows
            )
            if rows.num_rows
            else None
            for table, rows in ((self.tracks, change.tracks), (self.videos, change.videos))
        }
        note = {"id": commit_id, **note_of_files(**written)}
        self.masks.commit(number, change.masks, note)
        return note

    def _complete(self, table: TableLog, number: int, note: Mapping[str, Any]) -> None:
        """Step 3 for one table, unless somebody else takes it first."""
        file = file_in_note(note, table.name)
        for _ in range(MAX_TRIES):
            if table.sequence >= number:
                return
            try:
                return table.commit(number, [file] if file else [])
            except Conflict as e:
                log.info("%s: completing commit %d: %s", table.folder, number, e)
                table.refresh()
        raise StorageError(f"{table.folder}: cannot complete commit {number}")

    def _landed(self, commit_id: str, tried: dict[int, Change], last: int) -> Change | None:
        """The try that got through although its answer was lost."""
        for number, change in tried.items():
            if number <= last and self.masks.note(number)["id"] == commit_id:
                return change
        return None

    def _check_exclusive_puts(self) -> None:
        """Commits rest on them, and some S3 servers accept every one."""
        if is_local(self.root):
            return
        probe = join_uri(self.root, f"_probe-{uuid.uuid4().hex}")
        first, second = (self.storage.put_if_absent(probe, data) for data in (b"1", b"2"))
        self.storage.delete(probe)
        if not first or second:
            raise StorageError(
                f"{self.root}: this store overwrites in spite of If-None-Match; commits need it"
            )
