"""Read first: the rows everything speaks, as dataclasses; as Arrow they are in schemas.py.

Knows nothing of storage, Delta Lake, Ray or models; holds no logic but conversion and identity.
Coordinates are source pixels after rotation, x right and y down; frames are counted from 0.
Prompts stay in the manifest's own form (`PromptRow`) until the engine's door, `decode_prompts`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, TypedDict

import pyarrow as pa

from workflows import prompt_rows, schemas
from workflows.prompt_rows import PromptRow as PromptRow

MANIFEST_SCHEMA = schemas.MANIFEST_SCHEMA
MASKS_SCHEMA = schemas.MASKS_SCHEMA
TRACKS_SCHEMA = schemas.TRACKS_SCHEMA
VIDEOS_SCHEMA = schemas.VIDEOS_SCHEMA
RUNS_SCHEMA = schemas.RUNS_SCHEMA
OUTCOMES_SCHEMA = schemas.OUTCOMES_SCHEMA

SCHEMA_VERSION = prompt_rows.SCHEMA_VERSION
decode_prompts = prompt_rows.decode_prompts
encode_prompt = prompt_rows.encode_prompt
fingerprint = prompt_rows.fingerprint
config_hash = prompt_rows.config_hash


class Status(StrEnum):
    OK = "ok"
    FAILED = "failed"


class FailureReason(StrEnum):
    """Why a video has no masks. `INTERNAL` is a defect of ours; the rest are facts of the data."""

    URI_NOT_ALLOWED = "uri_not_allowed"
    NOT_FOUND = "not_found"
    UNREADABLE = "unreadable"
    UNDECODABLE = "undecodable"
    NO_FRAMES = "no_frames"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    PROMPT_OUT_OF_RANGE = "prompt_out_of_range"
    PROMPT_INVALID = "prompt_invalid"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    INTERNAL = "internal"
    # of refinements only
    REQUEST_INVALID = "request_invalid"
    STALE_REVISION = "stale_revision"


class Source(StrEnum):
    BULK = "bulk"
    REFINE = "refine"
    IMPORT = "import"


class Review(StrEnum):
    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class FlagRow(TypedDict):
    frame_index: int
    kind: str
    doubt: float


class RefinementRow(TypedDict):
    """How a refinement came to a track's masks; frames are null for an object that was removed."""

    request_id: str | None
    base_revision: int
    first_frame: int | None
    last_frame: int | None
    converged_frames: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """One manifest row: a video and what to label in it; prompts not yet checked."""

    video_id: str
    video_uri: str
    prompts: tuple[PromptRow, ...]
    first_frame: int | None = None
    last_frame: int | None = None
    priority: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "VideoRequest":
        """From a manifest row as `to_pylist` gives it; absent optional columns are null."""
        return cls(
            video_id=row["video_id"],
            video_uri=row["video_uri"],
            prompts=tuple(row["prompts"] or ()),
            first_frame=row.get("first_frame"),
            last_frame=row.get("last_frame"),
            priority=row.get("priority"),
            tags=dict(row.get("tags") or ()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A Parquet file in a table's folder, which no commit need name yet."""

    path: str  # relative to the table's folder
    size_bytes: int
    num_rows: int
    stats: str  # Delta Lake statistics, JSON


MaskObject = DataFile  # the masks of one video


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One object of one video at one revision; the columns of TRACKS_SCHEMA.

    The writer sets revision, parent_revision and created_at at commit, and masks_revision unless
    the track shows masks of an earlier one.
    """

    video_id: str
    object_id: int
    source: Source
    prompts: tuple[PromptRow, ...]
    first_frame: int
    last_frame: int
    frames_present: int
    revision: int | None = None
    parent_revision: int | None = None
    masks_revision: int | None = None
    author: str | None = None
    category: str | None = None
    object_score_mean: float | None = None
    object_score_min: float | None = None
    iou_pred_mean: float | None = None
    iou_pred_min: float | None = None
    stability_mean: float | None = None
    stability_min: float | None = None
    doubt: float | None = None
    flags: tuple[FlagRow, ...] = ()
    review: Review = Review.OPEN
    removed: bool = False
    refinement: RefinementRow | None = None
    model_id: str | None = None
    model_sha256: str | None = None
    config_hash: str | None = None
    fingerprint: str | None = None
    run_id: str | None = None
    created_at: datetime | None = None

    @property
    def brings_masks(self) -> bool:
        """Whether mask rows are committed with it: it shows no earlier ones, and some at all."""
        return self.masks_revision is None and not self.removed


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOutcome:
    """How one attempt at a video ended; the columns of VIDEOS_SCHEMA and what it produced.

    request_id: of an attempt that is a refinement; its fingerprint is the request's.
    """

    video_id: str
    video_uri: str
    fingerprint: str
    status: Status
    run_id: str
    finished_at: datetime
    request_id: str | None = None
    reason: FailureReason | None = None
    detail: str | None = None
    num_frames_header: int | None = None
    num_frames_decoded: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    rotation_deg: int | None = None
    duration_s: float | None = None
    objects: int | None = None
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    hardware: str | None = None
    code_version: str | None = None
    tracks: tuple[Track, ...] = ()
    mask_object: MaskObject | None = None

    def __post_init__(self) -> None:
        failed = self.status == Status.FAILED
        if failed != (self.reason is not None):
            raise ValueError(
                f"{self.video_id}: status {self.status} with reason {self.reason}; "
                "wanted a reason if and only if it failed"
            )
        if failed and (self.tracks or self.mask_object is not None):
            raise ValueError(f"{self.video_id}: a failed video has neither tracks nor masks")
        if self.mask_object is not None and not self.tracks:
            raise ValueError(f"{self.video_id}: masks without tracks would never be seen")


def outcomes_to_table(outcomes: Iterable[VideoOutcome]) -> pa.Table:
    """One row a video, OUTCOMES_SCHEMA."""
    return pa.Table.from_pylist([_row(outcome) for outcome in outcomes], schema=OUTCOMES_SCHEMA)


def outcomes_from_table(table: pa.Table | pa.RecordBatch) -> list[VideoOutcome]:
    """The inverse of `outcomes_to_table`."""
    return [_outcome(row) for row in table.to_pylist()]


def tracks_to_table(tracks: Iterable[Track]) -> pa.Table:
    return pa.Table.from_pylist([_row(track) for track in tracks], schema=TRACKS_SCHEMA)


def tracks_from_table(table: pa.Table | pa.RecordBatch) -> list[Track]:
    return [_track(row) for row in table.to_pylist()]


def _row(record: Any) -> dict[str, Any]:
    """A dataclass as Arrow wants it: nested records as dicts, mappings as pairs."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    for name in ("tags", "seconds_by_stage"):
        if name in values:
            values[name] = list(values[name].items())
    if "tracks" in values:
        values["tracks"] = [_row(track) for track in record.tracks]
        values["mask_object"] = record.mask_object and _row(record.mask_object)
    return values


def _track(row: Mapping[str, Any]) -> Track:
    lists = {name: tuple(row[name] or ()) for name in ("prompts", "flags")}
    enums = {"source": Source(row["source"]), "review": Review(row["review"])}
    return Track(**{**row, **lists, **enums, "removed": bool(row["removed"])})


def _outcome(row: Mapping[str, Any]) -> VideoOutcome:
    return VideoOutcome(
        **{
            **row,
            "status": Status(row["status"]),
            "reason": row["reason"] and FailureReason(row["reason"]),
            "seconds_by_stage": dict(row["seconds_by_stage"] or ()),
            "tracks": tuple(_track(track) for track in row["tracks"] or ()),
            "mask_object": row["mask_object"] and MaskObject(**row["mask_object"]),
        }
    )
