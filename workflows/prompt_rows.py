"""Prompts as manifest and dataset keep them, and the identity of a labelling.

Knows nothing of videos, storage or models. A `PromptRow` stays as it was read until the engine's
door, `decode_prompts`, so that a bad one fails its own video only.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # the model's package loads torch, which a reader of rows can do without
    from sam2model.prompts import Prompt

# One encoder for all: json.dumps makes one for each call, and there are two for each row.
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
SCHEMA_VERSION = 1  # part of every fingerprint: raise it and everything is labelled again

BOX = pa.struct([(corner, pa.float32()) for corner in ("x0", "y0", "x1", "y1")])
POINT = pa.struct([("x", pa.float32()), ("y", pa.float32()), ("positive", pa.bool_())])
MASK_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
PROMPT = pa.struct(
    [
        ("object_id", pa.int32()),
        ("frame_index", pa.int32()),
        ("points", pa.list_(POINT)),
        ("box", BOX),
        ("mask", MASK_RLE),
        ("category", pa.string()),
    ]
)


class PointRow(TypedDict):
    x: float
    y: float
    positive: bool


class MaskRow(TypedDict):
    size: list[int]  # [height, width]
    counts: str  # COCO compressed run lengths


class PromptRow(TypedDict):
    """A manifest prompt, as Arrow's `to_pylist` gives it."""

    object_id: int
    frame_index: int
    points: NotRequired[list[PointRow] | None]
    box: NotRequired[dict[str, float] | None]  # x0, y0, x1, y1
    mask: NotRequired[MaskRow | None]
    category: NotRequired[str | None]


def decode_prompts(rows: Iterable[PromptRow]) -> "list[Prompt]":
    """The prompts for the engine. Raises PromptError for one that no video could satisfy."""
    return [_decode(row) for row in rows]


def encode_prompt(prompt: "Prompt", category: str | None = None) -> PromptRow:
    """The row of a prompt; the inverse of `decode_prompts` up to float32."""
    from sam2model.rle import encode_mask

    box, mask = prompt.box_xyxy_px, prompt.mask
    return {
        "object_id": prompt.object_id,
        "frame_index": prompt.frame_index,
        "points": [
            {"x": x, "y": y, "positive": positive}
            for (x, y), positive in zip(prompt.points_px, prompt.positive, strict=True)
        ],
        "box": box and dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
        "mask": None
        if mask is None
        else {"size": [mask.shape[0], mask.shape[1]], "counts": encode_mask(mask)},
        "category": category,
    }


def fingerprint(
    prompts: Iterable[PromptRow],
    weights_sha256: str,
    inference_config: Mapping[str, Any],
    schema_version: int = SCHEMA_VERSION,
    *,
    span: tuple[int | None, int | None] = (None, None),
) -> str:
    """The identity of a labelling, 32 hex digits: equal ones are never computed twice.

    The order of prompts does not count, the order of points within one does. Coordinates count
    as float32, which is what Parquet keeps. span: (first_frame, last_frame) of the manifest.
    inference_config: what changes the masks, JSON values only.
    """
    return _digest(
        {
            "prompts": sorted(_canonical_json(_canonical_prompt(row)) for row in prompts),
            "weights": weights_sha256,
            "config": inference_config,
            "schema": schema_version,
            "span": list(span),
        }
    )


def config_hash(inference_config: Mapping[str, Any]) -> str:
    """The identity of an inference config alone, 32 hex digits."""
    return _digest(inference_config)


def _decode(row: PromptRow) -> "Prompt":
    from sam2model.prompts import Prompt, PromptError

    points, box = row.get("points") or [], row.get("box")
    try:
        return Prompt(
            object_id=row["object_id"],
            frame_index=row["frame_index"],
            points_px=tuple((point["x"], point["y"]) for point in points),
            positive=tuple(point["positive"] for point in points),
            box_xyxy_px=(box["x0"], box["y0"], box["x1"], box["y1"]) if box else None,
            mask=_decode_mask(row),
        )
    except TypeError as e:  # a null inside: an id, a coordinate, a sign
        raise PromptError(f"{_where(row)}: a value is missing: {e}") from e


def _decode_mask(row: PromptRow) -> Any:
    from sam2model.prompts import PromptError
    from sam2model.rle import RleError, decode

    mask = row.get("mask")
    if mask is None:
        return None
    try:
        height, width = mask["size"]
        return decode(mask["counts"], height, width)
    except (RleError, ValueError, TypeError) as e:
        raise PromptError(f"{_where(row)}: mask of size {mask['size']}: {e}") from e


def _where(row: PromptRow) -> str:
    return f"prompt of object {row.get('object_id')} on frame {row.get('frame_index')}"


def _canonical_prompt(row: PromptRow) -> dict[str, Any]:
    box, mask = row.get("box"), row.get("mask")
    return {
        "object_id": row["object_id"],
        "frame_index": row["frame_index"],
        "points": [
            [_float32(p["x"]), _float32(p["y"]), p["positive"]] for p in row.get("points") or []
        ],
        "box": box and [_float32(box[corner]) for corner in ("x0", "y0", "x1", "y1")],
        "mask": mask and [list(mask["size"]), mask["counts"]],
        "category": row.get("category"),
    }


def _float32(value: float | None) -> str | None:
    """One spelling per float32 value: exact, and 0.0 for -0.0."""
    return None if value is None else (float(np.float32(value)) + 0.0).hex()


def _canonical_json(value: Any) -> str:
    return CANONICAL.encode(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical_json(value).encode()).hexdigest()[:32]
