"""An answer of SQL as a table for people, CSV, JSON lines or Parquet. Knows nothing of datasets.

Batches come one by one and go out one by one, so that memory does not follow the answer.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from workflows.query import Answer, QueryError

WIDEST_CELL = 60  # characters; run lengths of a mask are hundreds
ROWS_SHOWN = 200  # of a table for people
ONE_OF_A_NAME = ("jsonl", "parquet")  # formats whose readers find one column by each name


def write_answer(answer: Answer, kind: str, sink: IO[bytes]) -> int:
    """kind: a key of WRITERS. Returns the number of rows, those of a table not shown included.

    Raises QueryError, before anything is written, for columns that would hide one another.
    """
    names = answer.schema.names
    if kind in ONE_OF_A_NAME and (double := [name for name in names if names.count(name) > 1]):
        raise QueryError(f"two columns are called {double[0]}; wanted another name for one (AS)")
    return WRITERS[kind](answer, sink)


def _write_table(answer: Answer, sink: IO[bytes]) -> int:
    shown: list[list[str]] = []
    num_rows = 0
    for batch in answer:
        shown += [[_cell(v) for v in row] for row in _rows(batch.slice(0, ROWS_SHOWN - len(shown)))]
        num_rows += batch.num_rows
    names = answer.schema.names
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    lines = [_aligned(names, widths), "  ".join("-" * width for width in widths)]
    lines += [_aligned(row, widths) for row in shown]
    if num_rows > len(shown):
        lines.append(f"… {num_rows - len(shown):,} more rows; --output FILE has all")
    sink.write(("\n".join(lines) + "\n").encode())
    return num_rows


def _write_csv(answer: Answer, sink: IO[bytes]) -> int:
    """Lists, structs and maps, for which CSV has no form, as JSON."""
    num_rows = 0
    plain = [_is_plain(field.type) for field in answer.schema]
    schema = pa.schema(
        [
            field if is_plain else pa.field(field.name, pa.string())
            for field, is_plain in zip(answer.schema, plain, strict=True)
        ]
    )
    with pa.csv.CSVWriter(sink, schema) as writer:
        for batch in answer:
            columns = [
                column if is_plain else pa.array(map(_nested_json, column.to_pylist()), pa.string())
                for column, is_plain in zip(batch.columns, plain, strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            num_rows += batch.num_rows
    return num_rows


def _write_jsonl(answer: Answer, sink: IO[bytes]) -> int:
    num_rows = 0
    names = answer.schema.names
    for batch in answer:
        lines = io.StringIO()
        for row in _rows(batch):
            values = {name: _json(value) for name, value in zip(names, row, strict=True)}
            lines.write(json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n")
        sink.write(lines.getvalue().encode())
        num_rows += batch.num_rows
    return num_rows


def _write_parquet(answer: Answer, sink: IO[bytes]) -> int:
    num_rows = 0
    with pq.ParquetWriter(sink, answer.schema, compression="zstd") as writer:
        for batch in answer:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


WRITERS: dict[str, Callable[[Answer, IO[bytes]], int]] = {
    "table": _write_table,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """By position: two columns may have one name."""
    if not batch.num_columns:
        return iter(())
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _aligned(cells: list[str], widths: list[int]) -> str:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _cell(value: object) -> str:
    text = " ".join(str("" if value is None else value).splitlines())
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 1] + "…"


def _is_plain(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_interval(kind)


def _nested_json(value: object) -> str | None:
    return None if value is None else json.dumps(_json(value), allow_nan=False, ensure_ascii=False)


def _json(value: Any) -> Any:
    """What JSON can hold: numbers stay numbers, no number is null, times are ISO, bytes base64."""
    if isinstance(value, dict):
        return {str(name): _json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, Decimal):  # DuckDB's sum of whole numbers is one
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, bool | int | str) else str(value)
