"""Labels as Ray datasets: rows of masks, or clips of frames with masks, read by the cluster.

Knows nothing of what is done with them. The driver lists videos or clips; tasks read the rest.
"""

from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from workflows.labelled_clips import ClipReader, ClipShape
from workflows.labelled_videos import Selection, newest_labels, select_spans
from workflows.query import At, Dataset
from workflows.rows import MASKS_SCHEMA
from workflows.storage import Storage, StorageConfig

VIDEOS_A_TASK = 64  # opening the dataset costs as much as the masks of a few
CLIPS_A_TASK = 16


def read_masks(
    uri: str,
    selection: Selection | None = None,
    storage: StorageConfig | None = None,
    *,
    videos_a_task: int = VIDEOS_A_TASK,
) -> ray.data.Dataset:
    """The masks selected, MASKS_SCHEMA, in any order of videos; of a video, by object and frame.

    What is committed while they are read does not change them.
    """
    config = storage or StorageConfig()
    dataset = Dataset(uri, Storage(config))
    chosen = selection or Selection()
    at = chosen.at or newest_labels(dataset)
    videos = select_spans(dataset, chosen).select(["video_id", "object_ids"])
    return _in_tasks(videos, videos_a_task).map_batches(
        partial(_masks_of, uri=uri, storage=config, at=at), batch_size=None, batch_format="pyarrow"
    )


def read_clips(
    uri: str,
    selection: Selection | None = None,
    shape: ClipShape | None = None,
    storage: StorageConfig | None = None,
    *,
    clips_a_task: int = CLIPS_A_TASK,
) -> ray.data.Dataset:
    """A row a clip: video_id, frame_indices, object_ids, images (T, H, W, 3) uint8, masks
    (N, T, H, W) bool and labelled (N, T) bool, as `labelled_clips.Clip` has them."""
    reader = ClipReader(uri, selection, shape, storage)
    numbers = reader.clips().select(["number"])
    return _in_tasks(numbers, clips_a_task).map(partial(_clip_of, reader=reader))


def _in_tasks(rows: pa.Table, rows_a_task: int) -> ray.data.Dataset:
    starts = range(0, max(rows.num_rows, 1), rows_a_task)
    return ray.data.from_arrow([rows.slice(start, rows_a_task) for start in starts])


def _masks_of(videos: pa.Table, *, uri: str, storage: StorageConfig, at: At | None) -> pa.Table:
    dataset = Dataset(uri, Storage(storage))
    rows = zip(videos["video_id"].to_pylist(), videos["object_ids"].to_pylist(), strict=True)
    tables = [dataset.masks(video_id, object_ids, at=at) for video_id, object_ids in rows]
    return pa.concat_tables([MASKS_SCHEMA.empty_table(), *tables])


def _clip_of(row: dict[str, Any], *, reader: ClipReader) -> dict[str, Any]:
    clip = reader.read(int(row["number"]))
    return {
        name: getattr(clip, name)
        for name in ("video_id", "frame_indices", "object_ids", "images", "masks", "labelled")
    }
