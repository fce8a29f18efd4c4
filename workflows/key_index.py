"""Which keys there are, in 16 bytes each. Knows nothing of what the keys mean.

Ten million keys are 160 MB; keeping up with a table costs reading only the files new in it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workflows.data_files import stream_files
from workflows.delta_log import TableLog

DIGEST_BYTES = 16  # two of 10^9 keys meet with a chance of 10^-21; 8 bytes: with one of 3 %
MERGE_AT = (
    262_144  # recent keys before they join the sorted ones: a Python set is 10 times as large
)

Keys = Iterable[Sequence[str | None]]  # each key is some strings


class KeyIndex:
    """A set of keys that grows."""

    def __init__(self) -> None:
        self._sorted = digest_array([])
        self._recent: set[bytes] = set()

    def add(self, keys: Keys) -> None:
        self._recent.update(digests_of(keys))
        if len(self._recent) >= MERGE_AT:
            self.add_digests(digest_array(list(self._recent)))
            self._recent = set()

    def add_digests(self, digests: npt.NDArray[np.bytes_]) -> None:
        """As `add`, of keys whose digests were taken before."""
        self._sorted = np.unique(np.concatenate([self._sorted, digests]))

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """For each key, whether it is there."""
        return self.holds(digests_of(keys))

    def holds(self, digests: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """As `contains`, of keys whose digests were taken before."""
        wanted = digest_array(digests)
        places = np.searchsorted(self._sorted, wanted)
        places[places == len(self._sorted)] = 0
        found = np.zeros(len(wanted), bool)
        if len(self._sorted):
            found = self._sorted[places] == wanted
        if self._recent:
            found |= np.fromiter((d in self._recent for d in digests), bool, len(digests))
        return found


class TableKeys:
    """The keys of a table's rows, kept up to date by reading only files that are new."""

    def __init__(self, schema: pa.Schema, keys_of: Callable[[pa.RecordBatch], Keys]) -> None:
        """schema: the columns to read. keys_of: the keys of such rows."""
        self._schema = schema
        self._keys_of = keys_of
        self._seen: set[str] = set()
        self._keys = KeyIndex()

    def refresh(self, table: TableLog) -> KeyIndex:
        """The keys of the table as it is seen now, and perhaps of later rows."""
        paths = table.paths()
        unread = [path for path in paths if path not in self._seen]
        for batch in stream_files(table.storage, table.folder, unread, self._schema):
            self._keys.add(self._keys_of(batch))
        self._seen = set(paths)
        return self._keys


def key_rows(batch: pa.RecordBatch) -> Iterator[tuple[str | None, ...]]:
    """Each row as one key."""
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def digests_of(keys: Keys) -> list[bytes]:
    """Of each key, its identity in DIGEST_BYTES."""
    return [
        hashlib.blake2b(
            "\0".join(["" if part is None else part for part in key]).encode(),
            digest_size=DIGEST_BYTES,
        ).digest()
        for key in keys
    ]


def digest_array(digests: Sequence[bytes]) -> npt.NDArray[np.bytes_]:
    """DIGEST_BYTES for each."""
    return np.array(digests, f"S{DIGEST_BYTES}")
