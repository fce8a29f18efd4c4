"""Manifest rows from flat tables and from existing masks. Knows no Parquet writing, no pixels.

Rows have the keys of MANIFEST_SCHEMA. A video in which nothing is annotated comes with an empty
list of prompts: the caller counts it, so that nothing is lost in silence.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from workflows.manifest import ManifestError
from workflows.mask_sources import MaskSource
from workflows.prompt_rows import PromptRow
from workflows.storage import Storage
from workflows.video_files import VideoFiles

Row = dict[str, Any]

# A row says one thing of one object on one frame: a point (x, y and its sign), a box, a mask, or a
# point and a box. Rows of the same video, object and frame together make one prompt, their points
# in the order of the rows. Further columns named tags.NAME become tags of the video.
TABLE_COLUMNS = {
    "video_id": pa.string(),
    "video_uri": pa.string(),  # may be left out where video files are named after their ids
    "object_id": pa.int32(),
    "frame_index": pa.int32(),
    "x": pa.float32(),
    "y": pa.float32(),
    "positive": pa.bool_(),  # true where not given
    "x0": pa.float32(),
    "y0": pa.float32(),
    "x1": pa.float32(),
    "y1": pa.float32(),
    "mask_height": pa.int32(),
    "mask_width": pa.int32(),
    "mask_counts": pa.string(),  # COCO compressed run lengths
    "category": pa.string(),
    "first_frame": pa.int32(),
    "last_frame": pa.int32(),
    "priority": pa.int32(),
}
REQUIRED = ("video_id", "object_id", "frame_index")
OF_THE_VIDEO = ("video_uri", "first_frame", "last_frame", "priority")
BOX = ("x0", "y0", "x1", "y1")
MASK = ("mask_height", "mask_width", "mask_counts")
TAG = "tags."


def rows_from_table(uri: str, storage: Storage, videos: VideoFiles) -> Iterator[Row]:
    """One row a video from a Parquet, CSV or JSONL table with TABLE_COLUMNS, sorted by video_id.

    Holds the table, some 100 bytes a row. Raises ManifestError naming the first row (from 0) or
    column that does not fit.
    """
    table = _typed(_read_table(uri, storage), uri)
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    table = table.sort_by([("video_id", "ascending"), ("row", "ascending")])
    rows = (row for batch in table.to_batches(4096) for row in batch.to_pylist())
    for video_id, group in groupby(rows, key=lambda row: row["video_id"]):
        try:
            yield _video_of(video_id, list(group), videos)
        except ManifestError as error:
            raise ManifestError(f"{uri}: {error}") from error


def rows_from_masks(
    source: MaskSource, videos: VideoFiles, log: Callable[[str], None] = lambda _: None
) -> Iterator[Row]:
    """One row a video, each object prompted by its first mask that is not empty.

    Objects whose masks are all empty are logged and left out. Masks are read a video at a time.
    """
    from sam2model import rle

    for video_id in source:
        found = videos.find(video_id)
        prompts: list[PromptRow] = []
        for object_id, masks in source[video_id].items():
            first = next((frame for frame in sorted(masks) if rle.area(masks[frame].counts)), None)
            if first is None:
                log(f"{video_id}: object {object_id} has no mask that is not empty: left out")
                continue
            mask = masks[first]
            prompts.append(
                {
                    "object_id": object_id,
                    "frame_index": found.frame_index(first),
                    "mask": {"size": [mask.height, mask.width], "counts": mask.counts},
                }
            )
        yield {"video_id": video_id, "video_uri": found.uri, "prompts": prompts}


def _read_table(uri: str, storage: Storage) -> pa.Table:
    data = pa.BufferReader(storage.read_bytes(uri))
    try:
        if uri.endswith(".csv"):
            names = pyarrow.csv.open_csv(data).schema.names
            data.seek(0)
            # All as text, so that an id 007 stays one, and a bad number is named by its row.
            as_text = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            )
            return pyarrow.csv.read_csv(data, convert_options=as_text)
        if uri.endswith((".jsonl", ".ndjson")):
            kinds = pa.schema(list(TABLE_COLUMNS.items()))
            options = pyarrow.json.ParseOptions(explicit_schema=kinds)
            return pyarrow.json.read_json(data, parse_options=options)
        return pyarrow.parquet.read_table(data)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{uri}: cannot be read as a table: {error}") from error


def _typed(table: pa.Table, uri: str) -> pa.Table:
    """Columns of the types wanted; a name that is none of ours is refused, never dropped."""
    columns = {}
    for name in table.column_names:
        if name not in TABLE_COLUMNS and not name.startswith(TAG):
            choices = ", ".join([*TABLE_COLUMNS, TAG + "NAME"])
            raise ManifestError(f"{uri}: unknown column {name}; choices are {choices}")
        columns[name] = _cast(table.column(name), TABLE_COLUMNS.get(name, pa.string()), name, uri)
    for name in REQUIRED:
        if name not in columns:
            raise ManifestError(f"{uri}: no column {name}; wanted {', '.join(REQUIRED)}")
        if columns[name].null_count:
            row = columns[name].combine_chunks().is_null().index(True).as_py()
            raise ManifestError(f"{uri}: row {row}: {name} is not given")
    return pa.table(columns)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType, name: str, uri: str) -> pa.ChunkedArray:
    try:
        return column.cast(wanted)
    except pa.ArrowException as error:
        for row, value in enumerate(column):
            try:
                value.cast(wanted)
            except pa.ArrowException as cause:
                raise ManifestError(
                    f"{uri}: row {row}: {name}: got {value.as_py()!r}; wanted {wanted}"
                ) from cause
        raise ManifestError(f"{uri}: {name}: {error}; wanted {wanted}") from error


def _video_of(video_id: str, rows: list[Row], videos: VideoFiles) -> Row:
    about = {name: _agreed(rows, name) for name in OF_THE_VIDEO if name in rows[0]}
    tags = {name: _agreed(rows, name) for name in rows[0] if name.startswith(TAG)}
    uri = about.pop("video_uri", None)
    return {
        "video_id": video_id,
        "video_uri": videos.resolve(uri) if uri is not None else videos.find(video_id).uri,
        "prompts": _prompts_of(rows),
        **about,
        "tags": [(name.removeprefix(TAG), tag) for name, tag in tags.items() if tag is not None],
    }


def _prompts_of(rows: list[Row]) -> list[PromptRow]:
    """The prompts of one video, in the order of the rows that start them."""
    parts: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        parts.setdefault((row["object_id"], row["frame_index"]), []).append(row)
    return [
        {
            "object_id": object_id,
            "frame_index": frame_index,
            "points": [point for row in part for point in _points_of(row)],
            "box": _box_of(part),
            "mask": _mask_of(part),
            "category": _agreed(part, "category"),
        }
        for (object_id, frame_index), part in parts.items()
    ]


def _points_of(row: Row) -> list[Any]:
    if _complete(row, ("x", "y")) is None:
        return []
    positive = row.get("positive")
    return [{"x": row["x"], "y": row["y"], "positive": True if positive is None else positive}]


def _box_of(part: list[Row]) -> dict[str, float] | None:
    boxes = [box for row in part if (box := _complete(row, BOX)) is not None]
    if len(boxes) > 1:
        raise ManifestError(f"{_where(part[0])}: {len(boxes)} boxes; wanted one a prompt")
    return boxes[0] if boxes else None


def _mask_of(part: list[Row]) -> Any:
    masks = [mask for row in part if (mask := _complete(row, MASK)) is not None]
    if len(masks) > 1:
        raise ManifestError(f"{_where(part[0])}: {len(masks)} masks; wanted one a prompt")
    if not masks:
        return None
    mask = masks[0]
    return {"size": [mask["mask_height"], mask["mask_width"]], "counts": mask["mask_counts"]}


def _complete(row: Row, names: tuple[str, ...]) -> Row | None:
    """These columns together, or None where none of them is given."""
    values = {name: row.get(name) for name in names}
    missing = [name for name in names if values[name] is None]
    if missing and len(missing) < len(names):
        raise ManifestError(f"{_where(row)}: {', '.join(missing)} not given; wanted all of {names}")
    return None if missing else values


def _agreed(rows: list[Row], name: str) -> Any:
    """The one value that the rows give, if any."""
    given: Mapping[Any, Row] = {row[name]: row for row in rows if row.get(name) is not None}
    if len(given) > 1:
        (one, first), (other, second), *_ = given.items()
        raise ManifestError(
            f"{_where(second)}: {name} is {other!r}, but {one!r} in row {first['row']}"
        )
    return next(iter(given), None)


def _where(row: Row) -> str:
    return f"row {row['row']} ({row['video_id']!r})"
