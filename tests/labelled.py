"""Datasets with real masks for tests of what is done with labels: exports, imports, reports."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model import rle
from workflows.mask_objects import write_mask_object
from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.rows import MASKS_SCHEMA, Source, Status, Track, VideoOutcome
from workflows.storage import Storage

Mask = npt.NDArray[np.bool_]
Objects = Mapping[int, Mapping[int, Mask]]  # object_id → frame_index → mask

HEIGHT, WIDTH, FPS = 36, 64, 8.0


def blank() -> Mask:
    return np.zeros((HEIGHT, WIDTH), bool)


def disk(x: float, y: float, radius: float) -> Mask:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask: Mask = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return mask


def scene(num_frames: int = 6) -> dict[int, dict[int, Mask]]:
    """Three objects that overlap, with a hole, with two parts; absent on some frames.

    1: a disk with a hole, going right. 2: two disks, one over 1; absent on frame 2. 7: one pixel,
    only from frame 3 on.
    """
    ring = {t: disk(14 + 4 * t, 16, 10) & ~disk(14 + 4 * t, 16, 4) for t in range(num_frames)}
    pair = {t: disk(20, 20, 6) | disk(52, 9, 5) for t in range(num_frames)}
    pair[2] = blank()
    dot = {t: disk(60, 30, 0) for t in range(3, num_frames)}
    return {1: ring, 2: pair, 7: dot}


def mask_table(video_id: str, objects: Objects, revision: int = 1) -> pa.Table:
    rows = []
    for object_id, frames in objects.items():
        for frame_index, mask in frames.items():
            counts = rle.encode_mask(mask)
            box = rle.box_xyxy(counts, *mask.shape)
            rows.append(
                {
                    "video_id": video_id,
                    "object_id": object_id,
                    "frame_index": frame_index,
                    "pts_s": frame_index / FPS,
                    "revision": revision,
                    "counts": counts,
                    "height": mask.shape[0],
                    "width": mask.shape[1],
                    "area_px": int(mask.sum()),
                    "box": dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
                    if mask.any()
                    else None,
                    "object_score": 5.0,
                    "iou_pred": 0.75,
                    "stability": 0.9,
                    "is_prompt": frame_index == min(frames),
                }
            )
    return pa.Table.from_pylist(rows, schema=MASKS_SCHEMA)


def tracks_of(
    video_id: str, objects: Objects, categories: Mapping[int, str | None] | None = None, **more: Any
) -> tuple[Track, ...]:
    values: dict[str, Any] = {"source": Source.BULK, "prompts": (), "iou_pred_mean": 0.75}
    return tuple(
        Track(
            video_id=video_id,
            object_id=object_id,
            category=(categories or {}).get(object_id),
            first_frame=min(frames),
            last_frame=max(frames),
            frames_present=sum(bool(mask.any()) for mask in frames.values()),
            **{**values, **more},
        )
        for object_id, frames in objects.items()
    )


def label(
    root: str,
    videos: Mapping[str, Objects],
    *,
    categories: Mapping[int, str | None] | None = None,
    video_uri: str = "",
    num_frames: int | None = None,
    run_id: str = "r1",
    storage: Storage | None = None,
    of_tracks: Mapping[str, Any] | None = None,
    **more: Any,
) -> Dataset:
    """Commit videos as a bulk job would; the dataset, opened. more: columns of videos."""
    storage = storage or Storage()
    writer = DatasetWriter(storage, root)
    outcomes = []
    for number, (video_id, objects) in enumerate(videos.items()):
        some = next(iter(next(iter(objects.values())).values()))
        about: dict[str, Any] = {
            "video_uri": video_uri or f"s3://videos/{video_id}.mp4",
            "num_frames_decoded": num_frames or max(max(frames) for frames in objects.values()) + 1,
            "fps": FPS,
            "duration_s": 1.0,
            "height": some.shape[0],
            "width": some.shape[1],
        }
        outcome = VideoOutcome(
            video_id=video_id,
            fingerprint=f"{number:032x}",
            status=Status.OK,
            run_id=run_id,
            finished_at=datetime.now(UTC),
            objects=len(objects),
            tracks=tracks_of(video_id, objects, categories, run_id=run_id, **(of_tracks or {})),
            **{**about, **more},
        )
        outcomes.append(write_mask_object(storage, root, outcome, mask_table(video_id, objects)))
    writer.commit(outcomes)
    return Dataset(root, storage)


def relabel(
    root: str, video_id: str, objects: Objects, source: Source = Source.REFINE, **more: Any
) -> int:
    """Commit other masks of some objects as a person's refinement; the revision."""
    writer = DatasetWriter(Storage(), root)
    base = writer.newest_revisions([video_id])[video_id]
    tracks = tracks_of(video_id, objects, source=source, **more)
    return writer.commit_revision(video_id, base, tracks, mask_table(video_id, objects))


def sav_objects(path: Path) -> dict[int, dict[int, Mask]]:
    """The real masklets of SA-V's example, on every fourth frame."""
    video = json.loads(path.read_text())
    return {
        object_id: {
            4 * entry: rle.decode(masklets[place]["counts"], *masklets[place]["size"])
            for entry, masklets in enumerate(video["masklet"])
        }
        for place, object_id in enumerate(video["masklet_id"])
    }


def same_masks(one: Objects, other: Objects) -> bool:
    return {o: sorted(f) for o, f in one.items()} == {
        o: sorted(f) for o, f in other.items()
    } and all((one[o][t] == other[o][t]).all() for o in one for t in one[o])
