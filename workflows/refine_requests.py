"""Requests to refine videos, as a file and as the plan of a run. Knows nothing of models or Ray.

A file is Parquet or JSON lines, a row per video. What a request is called decides whether it was
done before: its request_id, else the hash of what it says.
"""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workflows.finished import FinishedVideos
from workflows.prompt_rows import PROMPT, config_hash
from workflows.refine_types import RefinementRequest, Span
from workflows.rows import FailureReason
from workflows.storage import Storage
from workflows.task_spool import IntArray
from workflows.video_costs import FloatArray

REQUESTS_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),  # the same one is carried out once; null: a hash of the row
        ("video_id", pa.string()),
        ("base_revision", pa.int32()),  # null: the newest when the work begins
        ("prompts", pa.list_(PROMPT)),  # added to those that the objects have
        ("object_ids", pa.list_(pa.int32())),  # to compute again with the prompts they have
        ("remove_object_ids", pa.list_(pa.int32())),
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),  # inclusive
        ("until_converged", pa.bool_()),
        ("author", pa.string()),
        ("priority", pa.int32()),
    ]
)
TASK_SCHEMA = pa.schema(
    [
        *REQUESTS_SCHEMA,
        ("fingerprint", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
TASKS_OF_A_PIECE = 1000
LARGEST_FILE_BYTES = 2**30  # a million requests with clicks; they are held whole


class RequestsError(ValueError):
    """A file of requests that cannot be used; says where, what it got and wanted."""


def read_requests(uri: str, storage: Storage) -> pa.Table:
    """The rows of a file, REQUESTS_SCHEMA. Raises RequestsError or a StorageError."""
    data = storage.read_bytes(uri, LARGEST_FILE_BYTES)
    table = _read_lines(uri, data) if uri.endswith((".jsonl", ".ndjson")) else _parse(uri, data)
    if unknown := [name for name in table.column_names if name not in REQUESTS_SCHEMA.names]:
        choices = ", ".join(REQUESTS_SCHEMA.names)
        raise RequestsError(f"{uri}: unknown column {unknown[0]}; choices are {choices}")
    if "video_id" not in table.column_names:
        raise RequestsError(f"{uri}: column video_id is missing")
    try:
        columns = {
            field.name: table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
            for field in REQUESTS_SCHEMA
        }
    except pa.ArrowException as error:
        raise RequestsError(f"{uri}: {error}") from error
    return pa.table(columns, schema=REQUESTS_SCHEMA)


def write_requests(rows: list[Mapping[str, Any]], uri: str, storage: Storage) -> None:
    """Rows in REQUESTS_SCHEMA's columns, as Parquet."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], REQUESTS_SCHEMA), sink)
    storage.put(uri, sink.getvalue())


def request_of(row: Mapping[str, Any], base_revision: int, author: str) -> RefinementRequest:
    """Of a row of a plan. author: where the row names nobody."""
    return RefinementRequest(
        video_id=row["video_id"],
        base_revision=base_revision,
        author=row["author"] or author,
        prompts=tuple(row["prompts"] or ()),
        object_ids=tuple(row["object_ids"] or ()),
        remove_object_ids=tuple(row["remove_object_ids"] or ()),
        span=Span(row["first_frame"] or 0, row["last_frame"]),
        until_converged=bool(row["until_converged"]),
        request_id=row["request_id"],
    )


class RefinePlan:
    """The requests of a file and what is left of them to do; as LabelPlan is of a manifest."""

    def __init__(self, requests: pa.Table, finished: FinishedVideos) -> None:
        rows = [_named(row) for row in requests.to_pylist()]
        seen: set[str] = set()
        for row in rows:
            if not row["video_id"]:
                _blame(row, "video_id: missing")
            elif row["video_id"] in seen:
                _blame(row, "video_id: an earlier row has the same one; wanted a row per video")
            seen.add(row["video_id"] or "")
        self._keys = [(row["video_id"] or "", row["fingerprint"]) for row in rows]
        done = finished.contains(*zip(*self._keys, strict=True)) if rows else np.empty(0, bool)
        self.videos, self.skipped = len(rows), int(done.sum())
        left = [row for row, is_done in zip(rows, done, strict=True) if not is_done]
        self._tasks = pa.Table.from_pylist(left, TASK_SCHEMA)
        # How many frames a request reaches is not known before; its objects are.
        self.work: FloatArray = np.array(
            [0.0 if row["reason"] else float(_num_objects(row)) for row in left]
        )
        sound = [i for i, row in enumerate(left) if row["reason"] is None]
        order = sorted(sound, key=lambda i: (-(left[i]["priority"] or 0), -self.work[i]))
        self.order: IntArray = np.array(order, np.int64)

    @property
    def num_tasks(self) -> int:
        return len(self._tasks)

    def tasks(self, numbers: IntArray) -> Iterator[pa.Table]:
        for start in range(0, len(numbers), TASKS_OF_A_PIECE):
            piece = pa.array(numbers[start : start + TASKS_OF_A_PIECE])
            yield self._tasks.take(piece).append_column("task", piece)

    def video_ids(self) -> pa.ChunkedArray:
        return self._tasks["video_id"]

    def at_fault(self) -> Iterator[pa.Table]:
        faulty = self._tasks.filter(self._tasks["reason"].is_valid())
        if faulty.num_rows:
            yield faulty

    def keys(self) -> Iterator[tuple[list[str], list[str]]]:
        if self._keys:
            ids, prints = zip(*self._keys, strict=True)
            yield list(ids), list(prints)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """With request_id and fingerprint, which make it known when it comes again."""
    request_id = row["request_id"] or config_hash({"request": json.loads(json.dumps(row))})
    fingerprint = config_hash({"refinement": request_id, "video": row["video_id"]})
    named = {"request_id": request_id, "fingerprint": fingerprint, "reason": None, "detail": None}
    return {**row, **named}


def _blame(row: dict[str, Any], detail: str) -> None:
    row["reason"], row["detail"] = FailureReason.REQUEST_INVALID, detail
    # Another row may be called the same; its attempts are not this one's.
    row["fingerprint"] = config_hash({"refinement": row["request_id"], "fault": detail})
    row["video_id"] = row["video_id"] or ""


def _num_objects(row: Mapping[str, Any]) -> int:
    prompted = {prompt["object_id"] for prompt in row["prompts"] or () if prompt}
    return len(prompted | set(row["object_ids"] or ())) or 1


def _parse(uri: str, data: bytes) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        raise RequestsError(f"{uri}: cannot be read as Parquet: {error}") from error


def _read_lines(uri: str, data: bytes) -> pa.Table:
    rows = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestsError(f"{uri}: line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise RequestsError(f"{uri}: line {number}: {line[:40]}; wanted an object")
        if unknown := [name for name in row if name not in REQUESTS_SCHEMA.names]:
            choices = ", ".join(REQUESTS_SCHEMA.names)
            raise RequestsError(
                f"{uri}: line {number}: unknown key {unknown[0]}; choices are {choices}"
            )
        rows.append(row)
    try:
        return pa.Table.from_pylist(rows, REQUESTS_SCHEMA)
    except pa.ArrowException as error:
        raise RequestsError(f"{uri}: {error}") from error
