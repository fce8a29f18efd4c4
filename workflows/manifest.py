"""Manifests as files: read in pieces, written whole. Knows nothing of what makes a prompt good.

A manifest is one Parquet file, or a folder of them read in the order of their names; its columns
are MANIFEST_SCHEMA. Readers may hold other widths of the same kinds, as pandas, DuckDB and Polars
write them; a column or a prompt's field of another kind or name is refused, never dropped.
"""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.manifest_faults import Fault, validate_batch
from workflows.rows import MANIFEST_SCHEMA
from workflows.storage import Storage
from workflows.uris import is_local, local_path

REQUIRED_COLUMNS = ("video_id", "video_uri", "prompts")
BATCH_ROWS = 4096  # of some hundred bytes; of some kilobytes where prompts are masks
READ_AHEAD_BYTES = 2**20  # a column at a time: a row group is never held whole
ROWS_PER_GROUP = 8192


class ManifestError(ValueError):
    """A manifest or its source that cannot be used; says where, what it got and wanted."""


def read_manifest(
    uri: str,
    storage: Storage,
    columns: Iterable[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """The rows in pieces, exactly of MANIFEST_SCHEMA or of those columns of it.

    Optional columns that the file lacks are null. Holds one piece, whatever the manifest's length.
    Raises ManifestError naming the column (and row) that does not fit, or what is no Parquet;
    NotFound if there is nothing.
    """
    for first_row, batch in read_pieces(uri, storage, columns, batch_rows):
        try:
            yield conform(batch, columns)
        except pa.ArrowException as error:
            _, faults = conform_rows(batch, first_row)
            raise ManifestError(f"{uri}: {'; '.join(map(str, faults[:1])) or error}") from error


def read_pieces(
    uri: str,
    storage: Storage,
    columns: Iterable[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(index of the first row, rows as they were written) of a manifest whose schema fits."""
    first_row = 0
    for file_uri in manifest_files(uri, storage):
        with _open_parquet(file_uri, storage) as parquet:
            faults = schema_faults(parquet.schema_arrow)
            if faults:
                raise ManifestError(f"{file_uri}: {'; '.join(map(str, faults))}")
            wanted = [
                name
                for name in parquet.schema_arrow.names
                if columns is None or name in set(columns)
            ]
            for batch in parquet.iter_batches(batch_rows, columns=wanted):
                yield first_row, batch
                first_row += batch.num_rows


def manifest_files(uri: str, storage: Storage) -> list[str]:
    """The Parquet files of a manifest: itself, or what lies in the folder. Raises NotFound."""
    is_folder = local_path(uri).is_dir() if is_local(uri) else uri.endswith("/")
    if not is_folder:
        storage.size(uri)
        return [uri]
    files = sorted(found.uri for found in storage.list(uri) if found.uri.endswith(".parquet"))
    if not files:
        raise ManifestError(f"{uri}: a folder without .parquet files")
    return files


def schema_faults(schema: pa.Schema) -> list[Fault]:
    """What keeps a file of this schema from being a manifest; empty if nothing does."""
    faults = [
        Fault(f"missing; wanted {MANIFEST_SCHEMA.field(name).type}", name)
        for name in REQUIRED_COLUMNS
        if name not in schema.names
    ]
    for field in schema:
        if schema.names.count(field.name) > 1:
            faults.append(Fault("is there twice", field.name))
        elif field.name not in MANIFEST_SCHEMA.names:
            choices = ", ".join(MANIFEST_SCHEMA.names)
            faults.append(Fault(f"unknown column; choices are {choices}", field.name))
        else:
            wanted = MANIFEST_SCHEMA.field(field.name).type
            faults += _type_faults(field.type, wanted, field.name)
    return faults


def conform(batch: pa.RecordBatch, columns: Iterable[str] | None = None) -> pa.RecordBatch:
    """The same rows in MANIFEST_SCHEMA, or in those columns of it.

    The batch's own schema has no faults. Raises ArrowException where a value does not fit its
    type: a number too large for int32, text that is not UTF-8.
    """
    names = MANIFEST_SCHEMA.names if columns is None else [*columns]
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in names])
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    for array in arrays:
        array.validate(full=True)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def conform_rows(
    batch: pa.RecordBatch, first_row: int, columns: Iterable[str] | None = None
) -> tuple[pa.RecordBatch, list[Fault]]:
    """As `conform`, with rows that do not fit nulled and reported as faults instead of raised."""
    try:
        return conform(batch, columns), []
    except pa.ArrowException:
        rows, faults = [], []
        for row in range(batch.num_rows):
            try:
                rows.append(conform(batch.take([row]), columns))
            except pa.ArrowException as error:
                faults.append(_fault_of_row(batch, row, first_row, error))
                nothing = pa.RecordBatch.from_pylist([{}], MANIFEST_SCHEMA)
                rows.append(conform(nothing, columns))
        return pa.Table.from_batches(rows).combine_chunks().to_batches()[0], faults


def write_manifest(rows: Iterable[Mapping[str, Any]], uri: str, storage: Storage) -> int:
    """Write rows (keys as in MANIFEST_SCHEMA) as one Parquet file; how many there were.

    Nothing is there until all is: rows are spooled to local disk in pieces, then put in one step.
    Raises ManifestError for a row with a fault; what was there before then stays.
    """
    count = 0
    rows = iter(rows)
    folder = _folder_beside(uri)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".manifest-") as spool:
        path = Path(spool) / "manifest.parquet"
        with pq.ParquetWriter(
            path, MANIFEST_SCHEMA, compression="zstd", write_page_checksum=True
        ) as writer:
            while piece := list(islice(rows, ROWS_PER_GROUP)):
                writer.write_batch(_checked(piece, count))
                count += len(piece)
        if is_local(uri):
            os.replace(path, local_path(uri))
        else:
            storage.put(uri, path.read_bytes())
    return count


class RangeReader(io.RawIOBase):
    """A stored object as a file to read from: every read is one ranged request, retried."""

    def __init__(self, uri: str, storage: Storage) -> None:
        super().__init__()
        self._uri, self._storage = uri, storage
        self._size_bytes = storage.size(uri)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size_bytes if size < 0 else min(self._position + size, self._size_bytes)
        if end <= self._position:
            return b""
        data = self._storage.read_range(self._uri, self._position, end)
        self._position = end
        return data


@contextmanager
def _open_parquet(uri: str, storage: Storage) -> Iterator[pq.ParquetFile]:
    """Raises ManifestError if it is not Parquet, also where that only shows while reading."""
    source: IO[bytes] | RangeReader
    source = local_path(uri).open("rb") if is_local(uri) else RangeReader(uri, storage)
    with source:
        try:
            yield pq.ParquetFile(
                source,
                buffer_size=READ_AHEAD_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,  # where the writer gave one, as we do
            )
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ManifestError(f"{uri}: cannot be read as Parquet: {error}") from error
        except OSError as error:  # Arrow's word for a damaged page
            raise ManifestError(f"{uri}: damaged: {error}") from error


def _checked(piece: list[Mapping[str, Any]], first_row: int) -> pa.RecordBatch:
    try:
        batch = pa.RecordBatch.from_pylist(piece, MANIFEST_SCHEMA)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        rows = f"rows {first_row} to {first_row + len(piece) - 1}"
        raise ManifestError(f"{rows}: {error}") from error
    faults = validate_batch(batch, first_row)
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise ManifestError(f"{faults[0]}{more}")
    return batch


def _folder_beside(uri: str) -> Path | None:
    """Where to spool: on the disk of a local manifest, so that it can be renamed into place."""
    if not is_local(uri):
        return None
    folder = local_path(uri).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _type_faults(got: pa.DataType, wanted: pa.DataType, path: str) -> list[Fault]:
    """Arrow casts text to numbers and drops fields it does not know; a manifest may not."""
    if pa.types.is_dictionary(got):
        got = got.value_type
    if pa.types.is_struct(wanted) and pa.types.is_struct(got):
        return _struct_faults(got, wanted, path)
    if pa.types.is_map(wanted) and pa.types.is_map(got):
        return [
            *_type_faults(got.key_type, wanted.key_type, f"{path}.key"),
            *_type_faults(got.item_type, wanted.item_type, f"{path}.value"),
        ]
    if _is_list(wanted) and _is_list(got):
        return _type_faults(got.value_type, wanted.value_type, f"{path}[]")
    if pa.types.is_null(got) or any(same(got) and same(wanted) for same in _KINDS):
        return []
    if pa.types.is_floating(wanted) and pa.types.is_integer(got):
        return []
    return [Fault(f"type {got}; wanted {wanted}", path)]


def _struct_faults(got: pa.DataType, wanted: pa.DataType, path: str) -> list[Fault]:
    names = [field.name for field in wanted]
    faults = []
    for field in got:
        if field.name not in names:
            choices = ", ".join(names)
            faults.append(Fault(f"unknown field {field.name}; choices are {choices}", path))
        else:
            kind = wanted.field(field.name).type
            faults += _type_faults(field.type, kind, f"{path}.{field.name}")
    return faults


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


_KINDS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, _is_text)


def _fault_of_row(
    batch: pa.RecordBatch, row: int, first_row: int, error: pa.ArrowException
) -> Fault:
    one = batch.take([row])  # a slice would be cast with all that it was cut out of
    for name in batch.schema.names:
        try:
            conform(one, [name])
        except pa.ArrowException as cause:
            named = name != "video_id" and "video_id" in batch.schema.names
            video_id = one["video_id"][0].as_py() if named else None
            return Fault(str(cause), name, first_row + row, video_id)
    return Fault(str(error), "", first_row + row)
