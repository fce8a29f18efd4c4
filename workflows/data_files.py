"""Parquet files as tables hold them: sorted, compressed, with the statistics readers skip by.

Knows nothing of logs and commits: a file written here is not part of a table yet.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from workflows.retry import one_line
from workflows.rows import DataFile
from workflows.storage import NotFound, Storage, Unreadable
from workflows.uris import join_uri

Result = TypeVar("Result")

ROW_GROUP_ROWS = 16_384  # 8k to 32k: small enough to skip within a file, large enough to compress
ZSTD_LEVEL = 3  # the smallest of the codecs tried on COCO counts; higher levels gain under 1 %
FOOTERS_READ = 8  # to know how long rows are
SHORT_COLUMNS_BYTES = 100  # of a row decoded: what footers tell is still packed in dictionaries
SORT_ORDER = ("video_id", "object_id", "frame_index", "revision")
STATISTICS = ("video_id", "object_id", "frame_index", "revision")
# what may lie decoded and unread; by pyarrow's own measure 64 batches of 131,072 rows, some 3 GB
SCAN = {"batch_size": ROW_GROUP_ROWS, "batch_readahead": 8, "fragment_readahead": 2}


class SteadyDataset(ds.FileSystemDataset):  # type: ignore[misc]
    """Files that are scanned in a bounded amount of memory, whoever scans them: DuckDB too."""

    def scanner(self, **options: Any) -> ds.Scanner:
        return super().scanner(**{**SCAN, **options})


def sorted_rows(table: pa.Table) -> pa.Table:
    """By video, object, frame and revision, as far as the table has them."""
    keys = [(name, "ascending") for name in SORT_ORDER if name in table.column_names]
    return table.sort_by(keys) if keys else table


def encode_parquet(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a Parquet file; metadata goes to its footer."""
    buffer = io.BytesIO()
    with _parquet_writer(buffer, table.schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(dict(metadata or {}))
    return buffer.getvalue()


def statistics(table: pa.Table) -> str:
    """Delta Lake's statistics of a file, JSON: what lets a reader skip it."""
    seen = Statistics()
    seen.add(table)
    return seen.as_json()


class Statistics:
    """What `statistics` tells, of rows that come piece by piece."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._extremes: dict[str, dict[str, Any]] = {}
        self._nulls: dict[str, int] = {}

    def add(self, rows: pa.Table) -> None:
        self.num_rows += rows.num_rows
        for name in STATISTICS:
            if name in rows.column_names and rows.num_rows:
                found = pc.min_max(rows[name]).as_py()
                seen = self._extremes.setdefault(name, {"min": None, "max": None})
                for extreme, choose in (("min", min), ("max", max)):
                    values = (seen[extreme], found[extreme])
                    seen[extreme] = choose((v for v in values if v is not None), default=None)
                self._nulls[name] = self._nulls.get(name, 0) + rows[name].null_count

    def as_json(self) -> str:
        return json.dumps(
            {
                "numRecords": self.num_rows,
                "minValues": {name: seen["min"] for name, seen in self._extremes.items()},
                "maxValues": {name: seen["max"] for name, seen in self._extremes.items()},
                "nullCount": self._nulls,
            }
        )


def write_data_file(storage: Storage, folder: str, path: str, table: pa.Table) -> DataFile:
    """Sort, encode and put one file; overwrites."""
    return write_in_pieces(storage, folder, path, table.schema, [table])


def write_in_pieces(
    storage: Storage, folder: str, path: str, schema: pa.Schema, pieces: Iterable[pa.Table]
) -> DataFile:
    """As `write_data_file`, of rows that memory need not hold at once.

    pieces: each is sorted here; its rows belong after those of the piece before.
    """
    buffer, seen = io.BytesIO(), Statistics()
    keys = [(name, "ascending") for name in SORT_ORDER if name in schema.names]
    with _parquet_writer(buffer, schema) as writer:
        for piece in pieces:
            seen.add(piece)
            piece = piece.combine_chunks()  # else each of the steps below would do so
            order = pc.sort_indices(piece, sort_keys=keys) if keys else None
            # one row group after the other, for a sorted copy of all would be as large again
            for start in range(0, piece.num_rows, ROW_GROUP_ROWS):
                end = start + ROW_GROUP_ROWS
                rows = piece[start:end] if order is None else piece.take(order[start:end])
                writer.write_table(rows)
            del piece  # before the next one is read
    data = buffer.getvalue()
    storage.put(join_uri(folder, path), data)
    return DataFile(path=path, size_bytes=len(data), num_rows=seen.num_rows, stats=seen.as_json())


def bytes_a_row(storage: Storage, folder: str, paths: Sequence[str]) -> float:
    """Of decoded rows, about, as a few of the files tell in their footers."""
    some = paths[:: -(-len(paths) // FOOTERS_READ)]
    footers = [_read_metadata(storage, folder, path) for path in some]
    groups = [footer.row_group(n) for footer in footers for n in range(footer.num_row_groups)]
    num_bytes = sum(int(group.total_byte_size) for group in groups)
    return SHORT_COLUMNS_BYTES + num_bytes / max(1, sum(int(group.num_rows) for group in groups))


def open_files(
    storage: Storage,
    folder: str,
    paths: Sequence[str],
    schema: pa.Schema,
    guarantees: Sequence[pc.Expression | None] | None = None,
) -> SteadyDataset:
    """Files of one table as a pyarrow dataset, nothing read yet.

    guarantees: what holds for all rows of each file; a scan for anything else leaves it closed.
    """
    format = ds.ParquetFileFormat()
    filesystem = storage.arrow_filesystem(folder)
    fragments = [
        format.make_fragment(path, filesystem, partition_expression=guarantee)
        for path, guarantee in zip(paths, guarantees or [None] * len(paths), strict=True)
    ]
    return SteadyDataset(fragments, schema, format, filesystem)


def read_files(
    storage: Storage,
    folder: str,
    paths: Sequence[str],
    schema: pa.Schema,
    where: pc.Expression | None = None,
) -> pa.Table:
    """All rows of some files that satisfy a filter, in schema's columns.

    Raises Unreadable, naming the table's folder.
    """

    def attempt(_: float) -> pa.Table:
        files = open_files(storage, folder, paths, schema)
        return files.to_table(columns=schema.names, filter=where)

    return _read(storage, folder, attempt)


def stream_files(
    storage: Storage,
    folder: str,
    paths: Sequence[str],
    schema: pa.Schema,
    where: pc.Expression | None = None,
) -> Iterator[pa.RecordBatch]:
    """As `read_files`, batch by batch, in constant memory."""
    files = open_files(storage, folder, paths, schema)
    yield from files.scanner(columns=schema.names, filter=where).to_batches()


def read_footer(storage: Storage, folder: str, path: str) -> Mapping[bytes, bytes]:
    """The metadata in a file's footer, reading little else. Raises NotFound, naming the URI."""
    return _read_metadata(storage, folder, path).metadata or {}


def _read_metadata(storage: Storage, folder: str, path: str) -> pq.FileMetaData:
    filesystem = storage.arrow_filesystem(folder)

    def attempt(_: float) -> pq.FileMetaData:
        with filesystem.open_input_file(path) as file:
            return pq.read_metadata(file)

    return _read(storage, join_uri(folder, path), attempt)


def _parquet_writer(sink: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    plain = {"counts", "detail"}  # each value its own: a dictionary would only cost
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[name for name in schema.names if name not in plain],
    )


def _read(storage: Storage, uri: str, attempt: Callable[[float], Result]) -> Result:
    """Retried as storage does; an error of pyarrow becomes one that names the URI."""
    try:
        return storage.retry.call(uri, attempt)
    except FileNotFoundError as e:
        raise NotFound(f"{uri}: {e}") from e
    except (OSError, pa.ArrowException) as e:
        raise Unreadable(f"{uri}: {one_line(e)}") from e
