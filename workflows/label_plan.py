"""What a run has to do: the rows of a manifest that the dataset lacks, longest first.

Knows nothing of models or Ray. Rows lie on local disk and are read back as they are needed: some
60 bytes of each stay in memory, so that the driver holds 10^7 of them.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from workflows.finished import FinishedVideos
from workflows.key_index import KeyIndex
from workflows.manifest import conform_rows, read_pieces
from workflows.manifest_faults import Fault, validate_batch
from workflows.prompt_rows import fingerprint
from workflows.rows import MANIFEST_SCHEMA, FailureReason
from workflows.storage import Storage
from workflows.task_spool import IntArray, TaskSpool
from workflows.video_costs import FloatArray, estimate_costs

log = logging.getLogger(__name__)

TASK_SCHEMA = pa.schema(
    [
        *(field for field in MANIFEST_SCHEMA if field.name != "tags"),
        ("fingerprint", pa.string()),
        ("reason", pa.string()),  # a FailureReason, of a row that says nothing to label
        ("detail", pa.string()),
    ]
)
KEYS_SCHEMA = pa.schema([TASK_SCHEMA.field(name) for name in ("video_id", "fingerprint")])
COLUMNS = [name for name in MANIFEST_SCHEMA.names if name != "tags"]
TASKS_OF_A_PIECE = 1000
REASONS = {  # by column at fault; other columns are the prompts' matter
    "video_uri": FailureReason.NOT_FOUND,
    "first_frame": FailureReason.PROMPT_OUT_OF_RANGE,
    "last_frame": FailureReason.PROMPT_OUT_OF_RANGE,
}
REPEATED = Fault("an earlier row of the manifest has the same id", "video_id")


@dataclass(frozen=True, slots=True)
class Labelling:
    """What decides the masks besides a row of the manifest."""

    weights_sha256: str
    inference_config: Mapping[str, Any]

    def fingerprint(self, row: Mapping[str, Any]) -> str:
        """The identity of a row's labelling. Raises what prompts of the wrong shape raise."""
        span = row["first_frame"], row["last_frame"]
        prompts = row["prompts"] or ()
        return fingerprint(prompts, self.weights_sha256, self.inference_config, span=span)

    def fingerprint_of_fault(self, detail: str) -> str:
        """The identity of a row that says nothing to label, by what is wrong with it."""
        return fingerprint((), self.weights_sha256, {**self.inference_config, "fault": detail})


class LabelPlan:
    """The rows of one manifest and what is left to do; close it to free the disk.

    videos: rows of the manifest. skipped: recorded by earlier runs. order: numbers of the tasks
    to label, longest first. costs: of every task. work: the same for the time left, 0 where a task
    will take none, for its row or its video is bad.
    """

    def __init__(
        self, manifest_uri: str, storage: Storage, labelling: Labelling, finished: FinishedVideos
    ) -> None:
        self.videos = self.skipped = 0
        self._labelling, self._finished = labelling, finished
        self._folder = tempfile.TemporaryDirectory(prefix="maskmill-plan-")
        self._tasks = TaskSpool(Path(self._folder.name, "tasks.arrow"), TASK_SCHEMA)
        self._keys = TaskSpool(Path(self._folder.name, "keys.arrow"), KEYS_SCHEMA)
        self._ids = KeyIndex()
        try:
            for first_row, raw in read_pieces(manifest_uri, storage, COLUMNS):
                self._add(*conform_rows(raw, first_row, COLUMNS), first_row)
            self._tasks.seal()
            self._keys.seal()
            self.costs: FloatArray = estimate_costs(self._tasks, storage)
            self.order: IntArray = self._longest_first()
            self.work: FloatArray = np.zeros(self.num_tasks)
            self.work[self.order] = self.costs[self.order]
            self.work[np.isinf(self.work)] = 0.0
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._tasks.close()
        self._keys.close()
        self._folder.cleanup()

    @property
    def num_tasks(self) -> int:
        """Rows not recorded by earlier runs; task numbers are below this."""
        return len(self._tasks)

    def tasks(self, numbers: IntArray) -> Iterator[pa.Table]:
        """Those tasks in that order, in pieces: TASK_SCHEMA and `task`, their number."""
        for start in range(0, len(numbers), TASKS_OF_A_PIECE):
            piece = numbers[start : start + TASKS_OF_A_PIECE]
            yield self._tasks.take(piece).append_column("task", pa.array(piece))

    def video_ids(self) -> pa.ChunkedArray:
        """Of every task, by its number."""
        batches = [self._tasks.batch(index) for index in range(self._tasks.num_batches)]
        return pa.chunked_array([batch["video_id"] for batch in batches], pa.string())

    def at_fault(self) -> Iterator[pa.Table]:
        """Tasks that cannot be labelled for a fault of their row, in pieces of TASK_SCHEMA."""
        for index in range(self._tasks.num_batches):
            batch = self._tasks.batch(index)
            faulty = batch.filter(batch["reason"].is_valid())
            if faulty.num_rows:
                yield pa.Table.from_batches([faulty])

    def keys(self) -> Iterator[tuple[list[str], list[str]]]:
        """Video ids and fingerprints of all rows of the manifest, in pieces."""
        for index in range(self._keys.num_batches):
            batch = self._keys.batch(index)
            yield batch["video_id"].to_pylist(), batch["fingerprint"].to_pylist()

    def _add(self, batch: pa.RecordBatch, misfits: list[Fault], first_row: int) -> None:
        rows = batch.to_pylist()
        faults = self._faults(batch, rows, misfits, first_row)
        for index, row in enumerate(rows):
            self._identify(row, faults.get(index), batch, index)
        ids, prints = [row["video_id"] for row in rows], [row["fingerprint"] for row in rows]
        done = self._finished.contains(ids, prints)
        self.videos += len(rows)
        self.skipped += int(done.sum())
        self._keys.append(pa.RecordBatch.from_pydict({"video_id": ids, "fingerprint": prints}))
        left = [row for row, is_done in zip(rows, done, strict=True) if not is_done]
        if left:
            self._tasks.append(pa.RecordBatch.from_pylist(left, TASK_SCHEMA))

    def _faults(
        self,
        batch: pa.RecordBatch,
        rows: list[dict[str, Any]],
        misfits: list[Fault],
        first_row: int,
    ) -> dict[int, Fault]:
        """The first fault of each row that can be told without its prompts."""
        faults: dict[int, Fault] = {}
        for fault in misfits + validate_batch(batch, first_row):
            if fault in misfits or not fault.column.startswith("prompts"):
                assert fault.row is not None
                faults.setdefault(fault.row - first_row, fault)
        seen = self._ids.contains((row["video_id"],) for row in rows)
        here: set[str] = set()
        for index, row in enumerate(rows):
            if row["video_id"] in here or seen[index]:
                faults.setdefault(index, REPEATED)
            here.add(row["video_id"])
        self._ids.add((video_id,) for video_id in here)
        return faults

    def _identify(
        self, row: dict[str, Any], fault: Fault | None, batch: pa.RecordBatch, index: int
    ) -> None:
        """Set fingerprint, reason and detail of one row of a batch."""
        if fault is None:
            try:
                row["fingerprint"] = self._labelling.fingerprint(row)
                return
            except (AttributeError, TypeError, ValueError) as error:  # a null where none may be
                said = validate_batch(batch.slice(index, 1))
                fault = said[0] if said else Fault(str(error), "prompts")
        row["video_id"] = row["video_id"] or fault.video_id or ""
        row["detail"] = f"{fault.column}: {fault.message}"
        row["reason"] = REASONS.get(fault.column, FailureReason.PROMPT_INVALID)
        row["fingerprint"] = self._labelling.fingerprint_of_fault(row["detail"])

    def _longest_first(self) -> IntArray:
        """Tasks without a fault: by priority, then by cost."""
        batches = [self._tasks.batch(index) for index in range(self._tasks.num_batches)]
        is_sound = [batch["reason"].is_null().to_numpy(zero_copy_only=False) for batch in batches]
        priority = [
            batch["priority"].fill_null(0).to_numpy(zero_copy_only=False) for batch in batches
        ]
        sound = np.concatenate([np.empty(0, bool), *is_sound])
        first = np.concatenate([np.empty(0, np.int32), *priority]).astype(np.int64)
        order: IntArray = np.lexsort((-self.costs, -first))
        sound_in_order: IntArray = order[sound[order]]
        return sound_in_order
