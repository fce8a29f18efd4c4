"""A dataset of any size from a few real masks: to ask how queries behave at 10^6 and 10^7 rows.

Knows nothing of models, videos or Ray: no video exists behind the rows. Files are put as a long job
leaves them, each with videos from everywhere, so that compaction has all of its work to do. The
same arguments give the same labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model import rle
from workflows.data_files import write_data_file
from workflows.dataset_log import Change, DatasetLog
from workflows.mask_sources import Rle
from workflows.rows import DataFile, FailureReason, Review, Source, Status
from workflows.schemas import MASKS_SCHEMA, RUNS_SCHEMA, TRACKS_SCHEMA, VIDEOS_SCHEMA
from workflows.storage import Storage

ROWS_A_FILE = 100_000  # of masks, before compaction: some 25 MB of real run lengths
FILES_A_COMMIT = 16
FPS = 24.0
RUN_ID = "synthetic"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FAILED_EVERY = 50  # a video in so many has failed


@dataclass(frozen=True, slots=True)
class SyntheticSize:
    """How much of everything. refined_every: an object in so many has a second revision; 0: none.

    with_masks false leaves the masks table empty: a current view of 10^6 tracks alone.
    """

    videos: int
    objects: int = 5
    frames: int = 100
    refined_every: int = 8
    with_masks: bool = True

    @property
    def tracks(self) -> int:
        """Objects, each counted once."""
        return self.videos * self.objects

    @property
    def mask_rows(self) -> int:
        """Of all revisions."""
        return (self.tracks + self.refined_tracks) * self.frames if self.with_masks else 0

    @property
    def refined_tracks(self) -> int:
        return -(-self.tracks // self.refined_every) if self.refined_every else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Masks:
    """Columns of the masks that rows are drawn from."""

    counts: pa.Array
    area_px: npt.NDArray[np.int32]
    box: pa.StructArray
    height: int
    width: int


def make_dataset(
    storage: Storage, root: str, masks: Sequence[Rle], size: SyntheticSize
) -> DatasetLog:
    """Put and commit it all; memory follows one file, not the dataset.

    masks: of one size, in an order in which neighbours resemble each other, as frames do.
    """
    drawn = _columns(masks)
    log = DatasetLog(storage, root)
    log.create()
    videos_a_file = max(1, ROWS_A_FILE // (size.objects * size.frames))
    num_files = -(-size.videos // videos_a_file)
    for first in range(0, num_files, FILES_A_COMMIT):
        files = range(first, min(first + FILES_A_COMMIT, num_files))
        numbers = [np.arange(file, size.videos, num_files) for file in files]
        put = tuple(_put_masks(log, drawn, size, n, f) for f, n in zip(files, numbers, strict=True))
        videos = np.concatenate(numbers)
        change = Change(
            masks=tuple(file for file in put if file is not None),
            tracks=pa.concat_tables(_tracks(size, videos)),
            videos=_videos(size, videos),
        )
        log.commit(lambda _, change=change: change)  # type: ignore[misc]
    log.runs.refresh()
    log.runs.commit(
        log.runs.sequence + 1,
        [write_data_file(storage, log.runs.folder, "synthetic.parquet", _run(size))],
    )
    return log


def video_name(number: int) -> str:
    return f"synthetic-{number:08d}"


def _columns(masks: Sequence[Rle]) -> _Masks:
    sizes = {(mask.height, mask.width) for mask in masks}
    if len(sizes) != 1:
        raise ValueError(f"masks of sizes {sorted(sizes)}; wanted one")
    height, width = sizes.pop()
    boxes = np.array([rle.box_xyxy(mask.counts, height, width) for mask in masks], np.float32)
    area_px = np.array([rle.area(mask.counts) for mask in masks], np.int32)
    box = pa.StructArray.from_arrays(
        [pa.array(boxes[:, side]) for side in range(4)],
        fields=list(MASKS_SCHEMA.field("box").type),
        mask=pa.array(area_px == 0),
    )
    counts = pa.array([mask.counts for mask in masks], pa.string())
    return _Masks(counts, area_px, box, height, width)


def _put_masks(
    log: DatasetLog, drawn: _Masks, size: SyntheticSize, videos: npt.NDArray[np.int64], file: int
) -> DataFile | None:
    if not size.with_masks:
        return None
    tables = [
        _masks(drawn, size, *_objects(size, videos, revision), revision=revision)
        for revision in (1, 2)
    ]
    path = f"synthetic/{file:06d}.parquet"
    return write_data_file(log.storage, log.masks.folder, path, pa.concat_tables(tables))


def _objects(
    size: SyntheticSize, videos: npt.NDArray[np.int64], revision: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Video number and object id of every object that has this revision."""
    video, object_id = (each.ravel() for each in np.meshgrid(videos, np.arange(size.objects)))
    track = video * size.objects + object_id
    if revision == 1:
        return video, object_id
    refined = track % size.refined_every == 0 if size.refined_every else np.zeros(len(track), bool)
    return video[refined], object_id[refined]


def _masks(
    drawn: _Masks,
    size: SyntheticSize,
    video: npt.NDArray[np.int64],
    object_id: npt.NDArray[np.int64],
    revision: int,
) -> pa.Table:
    """A row per object and frame; the frames of an object are neighbours among the masks drawn."""
    frame = np.tile(np.arange(size.frames), len(video))
    video, object_id = np.repeat(video, size.frames), np.repeat(object_id, size.frames)
    track = video * size.objects + object_id
    start = _noise(track, revision, len(drawn.area_px))
    place = (start + frame) % len(drawn.area_px)
    score = _noise(track * size.frames + frame, revision, 1000).astype(np.float32) / 1000
    area_px = drawn.area_px[place]
    columns = {
        "video_id": _names(video),
        "object_id": object_id,
        "frame_index": frame,
        "pts_s": frame / FPS,
        "revision": np.full(len(frame), revision),
        "counts": drawn.counts.take(pa.array(place)),
        "height": np.full(len(frame), drawn.height),
        "width": np.full(len(frame), drawn.width),
        "area_px": area_px,
        "box": drawn.box.take(pa.array(place)),
        "object_score": np.where(area_px > 0, 10 * score, -10 * score),
        "iou_pred": score,
        "stability": 1 - score / 4,
        "is_prompt": frame == 0,
    }
    return _table(columns, MASKS_SCHEMA)


def _tracks(size: SyntheticSize, videos: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    for revision, source in ((1, Source.BULK), (2, Source.REFINE)):
        video, object_id = _objects(size, videos, revision)
        count = len(video)
        share = _noise(video * size.objects + object_id, revision, 1000).astype(np.float32) / 1000
        columns = {
            "video_id": _names(video),
            "object_id": object_id,
            "revision": np.full(count, revision),
            "masks_revision": np.full(count, revision),
            "parent_revision": [revision - 1 or None] * count,
            "source": [source] * count,
            "category": pa.array(["person", "car", "dog", "cup"]).take(pa.array(object_id % 4)),
            "first_frame": np.zeros(count),
            "last_frame": np.full(count, size.frames - 1),
            "frames_present": np.full(count, size.frames),
            "object_score_mean": 10 * share,
            "object_score_min": 8 * share,
            "iou_pred_mean": share,
            "iou_pred_min": share / 2,
            "stability_mean": 1 - share / 4,
            "stability_min": 1 - share / 2,
            "doubt": 1 - share,
            "review": [Review.OPEN] * count,
            "run_id": [RUN_ID] * count,
            "created_at": [BEGAN + timedelta(days=revision)] * count,
        }
        yield _table(columns, TRACKS_SCHEMA)


def _videos(size: SyntheticSize, videos: npt.NDArray[np.int64]) -> pa.Table:
    """A row per video; one in FAILED_EVERY has a failed attempt before the one that went well."""
    rows = []
    for number in videos.tolist():
        about = {
            "video_id": video_name(number),
            "video_uri": f"s3://synthetic/{number:08d}.mp4",
            "fingerprint": f"{number:032x}",
            "run_id": RUN_ID,
            "finished_at": BEGAN + timedelta(seconds=number),
        }
        if number % FAILED_EVERY == 0:
            failure = {"status": Status.FAILED, "reason": FailureReason.TIMEOUT, "run_id": "first"}
            rows.append({**about, **failure, "finished_at": BEGAN - timedelta(days=1)})
        rows.append(
            {
                **about,
                "status": Status.OK,
                "num_frames_decoded": size.frames,
                "fps": FPS,
                "duration_s": size.frames / FPS,
                "objects": size.objects,
            }
        )
    return pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA)


def _run(size: SyntheticSize) -> pa.Table:
    frames = size.videos * size.frames
    row = {
        "run_id": RUN_ID,
        "job": "label",
        "started_at": BEGAN,
        "finished_at": BEGAN + timedelta(hours=1),
        "videos_requested": size.videos,
        "videos_ok": size.videos,
        "videos_failed": 0,
        "frames": frames,
        "object_frames": frames * size.objects,
        "video_s": frames / FPS,
        "wall_s": 3600.0,
        "device_s": 3600.0,
        "cost": 4.0,
        "currency": "USD",
    }
    return pa.Table.from_pylist([row], schema=RUNS_SCHEMA)


def _noise(seed: npt.NDArray[np.int64], revision: int, below: int) -> npt.NDArray[np.int64]:
    """Numbers from 0 that follow from the seed and look as if they did not."""
    mixed = (seed.astype(np.uint64) * 2 + np.uint64(revision)) * np.uint64(0x9E3779B97F4A7C15)
    spread: npt.NDArray[np.int64] = ((mixed >> np.uint64(33)) % np.uint64(below)).astype(np.int64)
    return spread


def _names(videos: npt.NDArray[np.int64]) -> pa.Array:
    unique, place = np.unique(videos, return_inverse=True)
    return pa.array([video_name(n) for n in unique.tolist()], pa.string()).take(pa.array(place))


def _table(columns: dict[str, object], schema: pa.Schema) -> pa.Table:
    """Columns of the schema, the missing ones null."""
    num_rows = len(columns["video_id"])  # type: ignore[arg-type]
    return pa.table(
        [
            columns[field.name]
            if isinstance(columns.get(field.name), pa.Array)
            else pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )
