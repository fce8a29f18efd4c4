"""Read first: the rows everything speaks, as Arrow schemas and as dataclasses.

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

from workflows import prompt_rows
from workflows.prompt_rows import BOX, PROMPT
from workflows.prompt_rows import PromptRow as PromptRow

SCHEMA_VERSION = prompt_rows.SCHEMA_VERSION
decode_prompts = prompt_rows.decode_prompts
encode_prompt = prompt_rows.encode_prompt
fingerprint = prompt_rows.fingerprint
config_hash = prompt_rows.config_hash

TIMESTAMP = pa.timestamp("us", tz="UTC")  # Delta Lake knows microseconds only
FLAG = pa.struct([("frame_index", pa.int32()), ("kind", pa.string()), ("doubt", pa.float32())])

MANIFEST_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("video_uri", pa.string()),
        ("prompts", pa.list_(PROMPT)),
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),  # inclusive
        ("priority", pa.int32()),
        ("tags", pa.map_(pa.string(), pa.string())),
    ]
)
# a row per (object, frame) of the labelled span; absent = area 0, box null
MASKS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("object_id", pa.int32()),
        ("frame_index", pa.int32()),
        ("pts_s", pa.float64()),
        ("revision", pa.int32()),
        ("counts", pa.string()),  # COCO compressed run lengths
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("area_px", pa.int32()),
        ("box", BOX),
        ("object_score", pa.float32()),
        ("iou_pred", pa.float32()),
        ("stability", pa.float32()),
        ("is_prompt", pa.bool_()),
    ]
)
# a row per (video, object, revision)
TRACKS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("object_id", pa.int32()),
        ("revision", pa.int32()),
        ("parent_revision", pa.int32()),  # this object's revision before; null for its first
        ("masks_revision", pa.int32()),  # whose mask rows it shows: older when only reviewed
        ("source", pa.string()),  # a Source
        ("author", pa.string()),
        ("category", pa.string()),
        ("prompts", pa.list_(PROMPT)),
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),
        ("frames_present", pa.int32()),
        ("object_score_mean", pa.float32()),
        ("object_score_min", pa.float32()),
        ("iou_pred_mean", pa.float32()),
        ("iou_pred_min", pa.float32()),
        ("stability_mean", pa.float32()),
        ("stability_min", pa.float32()),
        ("doubt", pa.float32()),
        ("flags", pa.list_(FLAG)),
        ("review", pa.string()),  # a Review
        ("model_id", pa.string()),
        ("model_sha256", pa.string()),
        ("config_hash", pa.string()),
        ("fingerprint", pa.string()),
        ("run_id", pa.string()),
        ("created_at", TIMESTAMP),  # when it was committed
    ]
)
# a row per attempt at a video
VIDEOS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("video_uri", pa.string()),
        ("fingerprint", pa.string()),
        ("status", pa.string()),  # a Status
        ("reason", pa.string()),  # a FailureReason; null when ok
        ("detail", pa.string()),
        ("num_frames_header", pa.int32()),
        ("num_frames_decoded", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation_deg", pa.int32()),
        ("duration_s", pa.float64()),
        ("objects", pa.int32()),
        ("seconds_by_stage", pa.map_(pa.string(), pa.float64())),
        ("peak_memory_bytes", pa.int64()),
        ("peak_device_memory_bytes", pa.int64()),
        ("hardware", pa.string()),
        ("run_id", pa.string()),
        ("code_version", pa.string()),
        ("finished_at", TIMESTAMP),
    ]
)
# a row per job
RUNS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("job", pa.string()),
        ("started_at", TIMESTAMP),
        ("finished_at", TIMESTAMP),
        ("config", pa.string()),  # as resolved, JSON
        ("manifest_uri", pa.string()),
        ("code_version", pa.string()),
        ("hardware", pa.string()),
        ("videos_requested", pa.int64()),
        ("videos_skipped", pa.int64()),  # finished by an earlier run
        ("videos_ok", pa.int64()),
        ("videos_failed", pa.int64()),
        ("failures", pa.map_(pa.string(), pa.int64())),  # by FailureReason
        ("frames", pa.int64()),
        ("object_frames", pa.int64()),
        ("video_s", pa.float64()),
        ("wall_s", pa.float64()),
        ("device_s", pa.float64()),
        ("cost", pa.float64()),
        ("currency", pa.string()),
    ]
)
MASK_OBJECT = pa.struct(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("num_rows", pa.int64()),
        ("stats", pa.string()),
    ]
)
# what travels from an actor to the driver: a row per video
OUTCOMES_SCHEMA = pa.schema(
    [*VIDEOS_SCHEMA, ("tracks", pa.list_(pa.struct(TRACKS_SCHEMA))), ("mask_object", MASK_OBJECT)]
)


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

    The writer sets revision, parent_revision, masks_revision and created_at at commit.
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
    model_id: str | None = None
    model_sha256: str | None = None
    config_hash: str | None = None
    fingerprint: str | None = None
    run_id: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOutcome:
    """How one attempt at a video ended; the columns of VIDEOS_SCHEMA and what it produced."""

    video_id: str
    video_uri: str
    fingerprint: str
    status: Status
    run_id: str
    finished_at: datetime
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
    return Track(**{**row, **lists, **enums})


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
