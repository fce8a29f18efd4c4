"""Small labels for tests of the dataset: masks of a few objects on a few frames."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from workflows.data_files import read_files
from workflows.dataset_log import DatasetLog
from workflows.mask_objects import write_mask_object
from workflows.rows import (
    MASKS_SCHEMA,
    FailureReason,
    PromptRow,
    Source,
    Status,
    Track,
    VideoOutcome,
)
from workflows.storage import Storage


def click(object_id: int) -> PromptRow:
    return {
        "object_id": object_id,
        "frame_index": 0,
        "points": [{"x": 1.5, "y": 2.0, "positive": True}],
        "box": None,
        "mask": None,
        "category": "cup",
    }


def mask_rows(
    video_id: str, objects: tuple[int, ...] = (0, 1), frames: int = 3, score: float = 1.0
) -> pa.Table:
    rows = [
        {
            "video_id": video_id,
            "object_id": object_id,
            "frame_index": frame_index,
            "pts_s": frame_index / 30,
            "revision": 0,
            "counts": f"{object_id}{frame_index}",
            "height": 4,
            "width": 5,
            "area_px": frame_index,
            "box": {"x0": 0.0, "y0": 0.0, "x1": 2.0, "y1": 2.0} if frame_index else None,
            "object_score": score,
            "iou_pred": 0.5,
            "stability": 0.25,
            "is_prompt": frame_index == 0,
        }
        for object_id in objects
        for frame_index in range(frames)
    ]
    return pa.Table.from_pylist(rows, schema=MASKS_SCHEMA)


def track(video_id: str, object_id: int, source: Source = Source.BULK, **changes: Any) -> Track:
    values: dict[str, Any] = {
        "video_id": video_id,
        "object_id": object_id,
        "source": source,
        "prompts": (click(object_id),),
        "first_frame": 0,
        "last_frame": 2,
        "frames_present": 2,
    }
    return Track(**{**values, **changes})


def ok(
    video_id: str, fingerprint: str = "f" * 32, objects: tuple[int, ...] = (0, 1), run: str = "r"
) -> VideoOutcome:
    """A finished video whose masks are not yet put."""
    return VideoOutcome(
        video_id=video_id,
        video_uri=f"s3://videos/{video_id}.mp4",
        fingerprint=fingerprint,
        status=Status.OK,
        run_id=run,
        finished_at=datetime.now(UTC),
        num_frames_decoded=3,
        objects=len(objects),
        seconds_by_stage={"decode": 1.0},
        tracks=tuple(track(video_id, object_id, fingerprint=fingerprint) for object_id in objects),
    )


def put(storage: Storage, root: str, outcome: VideoOutcome, revision: int = 1) -> VideoOutcome:
    """What an actor does at the end of a video."""
    objects = tuple(track.object_id for track in outcome.tracks)
    masks = mask_rows(outcome.video_id, objects)
    return write_mask_object(storage, root, outcome, masks, revision)


def failed(
    video_id: str,
    reason: FailureReason = FailureReason.TIMEOUT,
    fingerprint: str = "f" * 32,
    run: str = "r",
) -> VideoOutcome:
    return VideoOutcome(
        video_id=video_id,
        video_uri=f"s3://videos/{video_id}.mp4",
        fingerprint=fingerprint,
        status=Status.FAILED,
        reason=reason,
        detail="because",
        run_id=run,
        finished_at=datetime.now(UTC),
    )


def contents(storage: Storage, root: str) -> dict[str, list[tuple[Any, ...]]]:
    """What a reader sees: the keys of every row of masks, tracks and videos, sorted."""
    tables = DatasetLog(storage, root)
    tables.view()
    columns = {
        "masks": ("video_id", "object_id", "frame_index", "revision", "counts"),
        "tracks": ("video_id", "object_id", "revision", "parent_revision", "source", "review"),
        "videos": ("video_id", "fingerprint", "status", "reason"),
    }
    seen = {}
    for table in (tables.masks, tables.tracks, tables.videos):
        rows = read_files(storage, table.folder, table.paths(), table.schema)
        picked = rows.select(columns[table.name]).to_pylist()
        seen[table.name] = sorted((tuple(row.values()) for row in picked), key=str)
    return seen
