"""Rows written once and taken back in any order, on local disk. Knows nothing of their meaning.

The file is mapped, not read: what is taken is all that ever is in memory.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IntArray = npt.NDArray[np.int64]


class TaskSpool:
    """A file of rows: `append` any number of batches, `seal`, then `take` or iterate."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._path = path
        self._file: pa.NativeFile = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        self._starts: list[int] = [0]  # number of the first row of each batch, and of one more

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def num_batches(self) -> int:
        return len(self._starts) - 1

    def append(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._writer.write_batch(batch)
            self._starts.append(len(self) + batch.num_rows)

    def seal(self) -> None:
        """No more rows come; from now on they can be read."""
        self._writer.close()
        self._file.close()
        self._file = pa.memory_map(str(self._path))
        self._reader = pa.ipc.open_file(self._file)

    def batch(self, index: int) -> pa.RecordBatch:
        """Rows as they were appended."""
        assert self._reader is not None, "sealed before it is read"
        return self._reader.get_batch(index)

    def take(self, numbers: IntArray) -> pa.Table:
        """The rows of these numbers, in this order."""
        batch_of = np.searchsorted(self._starts, numbers, side="right") - 1
        # Batch by batch: Arrow would lay all of them end to end to take from any.
        by_batch = np.argsort(batch_of, kind="stable")
        parts = []
        for index in np.unique(batch_of):
            inside = numbers[batch_of == index] - self._starts[index]
            parts.append(self.batch(int(index)).take(pa.array(inside)))
        place = np.empty_like(by_batch)
        place[by_batch] = np.arange(len(by_batch))
        return pa.Table.from_batches(parts, self.schema).combine_chunks().take(pa.array(place))

    def close(self) -> None:
        """Let go of the file; removing it is the owner's matter."""
        if self._reader is None:
            self._writer.close()
        self._reader = None
        self._file.close()
