"""One picture of a track where it is most doubtful. Knows nothing of pages.

A video that cannot be read costs its pictures, never the report.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
from PIL import Image

from sam2model.video import Video, VideoError
from workflows.overlay import OverlayError, Panel, draw_panels
from workflows.query import Dataset
from workflows.storage import StorageError

log = logging.getLogger(__name__)

HEIGHT_PX, JPEG_QUALITY = 240, 80
FAULTS = (VideoError, StorageError, OverlayError, IndexError)


def thumbnails(
    dataset: Dataset, tracks: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, int], tuple[int, bytes]]:
    """(video_id, object_id) → frame_index and JPEG, of the tracks whose videos can be read."""
    pictures: dict[tuple[str, int], tuple[int, bytes]] = {}
    by_video = sorted(tracks, key=lambda track: str(track["video_id"]))
    for video_id, group in groupby(by_video, key=lambda track: str(track["video_id"])):
        uri = str(dataset.video(video_id)["video_uri"])
        try:
            with dataset.storage.open_video(uri) as source, Video(source, name=uri) as video:
                for track in group:
                    drawn = _draw(dataset, video, track)
                    if drawn is not None:
                        pictures[video_id, track["object_id"]] = drawn
        except FAULTS as error:
            log.warning("%s: no thumbnails: %s", video_id, error)
    return pictures


def _draw(dataset: Dataset, video: Video, track: Mapping[str, Any]) -> tuple[int, bytes] | None:
    object_id, revision = track["object_id"], track["masks_revision"]
    masks = dataset.masks(track["video_id"], [object_id], at=revision)
    frame_index = _frame_to_show(track, masks)
    if frame_index is None:
        return None
    rows = [row for row in masks.to_pylist() if row["frame_index"] == frame_index]
    panel = Panel.from_rows("", rows, (), {object_id: track["category"] or ""})
    picture = draw_panels(video.frame(frame_index), [panel], HEIGHT_PX)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return frame_index, buffer.getvalue()


def _frame_to_show(track: Mapping[str, Any], masks: pa.Table) -> int | None:
    """Of the greatest doubt, else of the lowest predicted IoU, else the first; None: no frame."""
    if track["flags"]:
        return int(track["flags"][0]["frame_index"])
    rows = masks.select(["frame_index", "iou_pred", "area_px"]).to_pylist()
    visible = [row for row in rows if row["area_px"]] or rows
    scored = [row for row in visible if row["iou_pred"] is not None]
    worst = min(scored, key=lambda row: row["iou_pred"], default=visible[0] if visible else None)
    return None if worst is None else int(worst["frame_index"])
