"""Parquet files as tables hold them: sorted, compressed, with the statistics readers skip by.

Knows nothing of logs and commits: a file written here is not part of a table yet.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

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
    plain = {"counts", "detail"}  # each value its own: a dictionary would only cost
    writer = pq.ParquetWriter(
        buffer,
        table.schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[name for name in table.column_names if name not in plain],
    )
    with writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(dict(metadata or {}))
    return buffer.getvalue()


def statistics(table: pa.Table) -> str:
    """Delta Lake's statistics of a file, JSON: what lets a reader skip it."""
    stats: dict[str, Any] = {
        "numRecords": table.num_rows,
        "minValues": {},
        "maxValues": {},
        "nullCount": {},
    }
    for name in STATISTICS:
        if name in table.column_names and table.num_rows:
            extremes = pc.min_max(table[name]).as_py()
            stats["minValues"][name] = extremes["min"]
            stats["maxValues"][name] = extremes["max"]
            stats["nullCount"][name] = table[name].null_count
    return json.dumps(stats)


def write_data_file(storage: Storage, folder: str, path: str, table: pa.Table) -> DataFile:
    """Sort, encode and put one file; overwrites."""
    table = sorted_rows(table)
    data = encode_parquet(table)
    storage.put(join_uri(folder, path), data)
    return DataFile(
        path=path, size_bytes=len(data), num_rows=table.num_rows, stats=statistics(table)
    )


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
    filesystem = storage.arrow_filesystem(folder)

    def attempt(_: float) -> Mapping[bytes, bytes]:
        with filesystem.open_input_file(path) as file:
            metadata: Mapping[bytes, bytes] = pq.read_metadata(file).metadata or {}
            return metadata

    return _read(storage, join_uri(folder, path), attempt)


def _read(storage: Storage, uri: str, attempt: Callable[[float], Result]) -> Result:
    """Retried as storage does; an error of pyarrow becomes one that names the URI."""
    try:
        return storage.retry.call(uri, attempt)
    except FileNotFoundError as e:
        raise NotFound(f"{uri}: {e}") from e
    except (OSError, pa.ArrowException) as e:
        raise Unreadable(f"{uri}: {one_line(e)}") from e
