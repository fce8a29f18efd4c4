"""What a view of a dataset shows of each video, one video at a time: for exports and scores.

Knows nothing of formats or metrics. The list of videos and their objects is small and comes first;
masks are read when a video is asked for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from workflows.query import At, Dataset
from workflows.rows import Review, Status, Track, tracks_from_table

MASK_COLUMNS = ["object_id", "counts", "area_px", "box", "iou_pred"]


class LabelsError(ValueError):
    """Labels that cannot be shown; the message says what, where, got and wanted."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a dataset, as they are or were at some time.

    where: a condition in SQL over current_tracks, such as "category = 'cup' AND doubt < 0.3".
    reviews: those of a person's judgements that are wanted.
    """

    at: At | None = None
    video_ids: tuple[str, ...] | None = None
    where: str | None = None
    reviews: tuple[Review, ...] = (Review.OPEN, Review.ACCEPTED)


@dataclass(frozen=True, slots=True)
class VideoObjects:
    """The objects selected of one video and the revisions they show, without masks.

    objects: (object_id, revision, revision of its masks), by object.
    """

    video_id: str
    objects: tuple[tuple[int, int, int], ...]

    @property
    def state(self) -> str:
        """Equal while the selected labels of the video are the same, 32 hex digits."""
        return hashlib.sha256(json.dumps([self.video_id, self.objects]).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVideo:
    """One video with the masks selected; MASKS_SCHEMA, sorted by object and frame.

    num_frames: as decoded; where nobody decoded it, up to the last labelled frame.
    fps, duration_s: None where the video does not say.
    """

    video_id: str
    video_uri: str
    height: int
    width: int
    num_frames: int
    fps: float | None
    duration_s: float | None
    tracks: tuple[Track, ...]
    masks: pa.Table

    @property
    def object_ids(self) -> list[int]:
        return [track.object_id for track in self.tracks]

    def category_of(self) -> dict[int, str | None]:
        return {track.object_id: track.category for track in self.tracks}

    def frames(self, every: int = 1) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Frames 0, every, 2·every … of the video and their rows (MASK_COLUMNS), by object.

        A frame without rows comes too, with none.
        """
        masks = self.masks.sort_by([("frame_index", "ascending"), ("object_id", "ascending")])
        frame_indices = masks["frame_index"].to_numpy()
        wanted = np.arange(0, self.num_frames, every)
        starts = np.searchsorted(frame_indices, wanted)
        ends = np.searchsorted(frame_indices, wanted, side="right")
        rows = masks.select(MASK_COLUMNS)
        for frame_index, start, end in zip(wanted.tolist(), starts, ends, strict=True):
            yield frame_index, rows.slice(start, end - start).to_pylist()


def select_videos(dataset: Dataset, selection: Selection) -> list[VideoObjects]:
    """Videos with an object selected, by id.

    Raises QueryError for a condition that is wrong, LabelsError for a video without any labels.
    """
    _check_ids(dataset, selection)
    where = " AND ".join(_conditions(selection))
    rows = dataset.sql(
        f"""
        SELECT video_id, object_id, revision, masks_revision FROM current_tracks
        WHERE {where} ORDER BY video_id, object_id
        """,
        at=selection.at,
    )
    videos: dict[str, list[tuple[int, int, int]]] = {}
    for video_id, *numbers in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        videos.setdefault(video_id, []).append((numbers[0], numbers[1], numbers[2]))
    return [VideoObjects(video_id, tuple(objects)) for video_id, objects in videos.items()]


def select_spans(dataset: Dataset, selection: Selection) -> pa.Table:
    """video_id, first and last labelled frame, object_ids and categories of every video selected.

    Raises QueryError for a condition that is wrong.
    """
    where = " AND ".join(_conditions(selection))
    return dataset.sql(
        f"""
        SELECT video_id, min(first_frame) AS first, max(last_frame) AS last,
               list(object_id ORDER BY object_id) AS object_ids,
               list(category ORDER BY object_id) AS categories
        FROM current_tracks WHERE {where} GROUP BY video_id ORDER BY video_id
        """,
        at=selection.at,
    )


def newest_labels(dataset: Dataset) -> datetime | None:
    """When the newest labels were committed: whoever reads them later sees the same."""
    newest: datetime | None = dataset.sql("SELECT max(created_at) FROM tracks")[0][0].as_py()
    return newest


def select_categories(dataset: Dataset, selection: Selection) -> list[str | None]:
    """Of the objects selected, each once."""
    where = " AND ".join(_conditions(selection))
    query = f"SELECT DISTINCT category FROM current_tracks WHERE {where}"
    categories: list[str | None] = dataset.sql(query, at=selection.at)[0].to_pylist()
    return categories


class VideoReader:
    """Reads videos one after the other; what is small is read for many of them at once."""

    def __init__(self, dataset: Dataset, at: At | None = None) -> None:
        self._dataset = dataset
        self._at = at
        self._tracks: dict[str, list[Track]] = {}
        self._attempts: dict[str, dict[str, Any]] = {}

    def prepare(self, video_ids: Sequence[str]) -> None:
        """Read the rows of tracks and videos about these; forget the others."""
        self._tracks = {video_id: [] for video_id in video_ids}
        if video_ids:
            for track in tracks_from_table(self._dataset.tracks(video_ids, self._at)):
                self._tracks[track.video_id].append(track)
        rows = self._dataset.videos(video_ids).to_pylist() if video_ids else []
        self._attempts = {row["video_id"]: row for row in rows}

    def read(self, wanted: VideoObjects) -> LabelledVideo:
        """The masks of a video's selected objects. Raises LabelsError where sizes disagree."""
        video_id = wanted.video_id
        if video_id not in self._tracks:
            self.prepare([video_id])
        object_ids = {object_id for object_id, *_ in wanted.objects}
        tracks = [track for track in self._tracks[video_id] if track.object_id in object_ids]
        masks = self._dataset.masks(video_id, object_ids, at=self._at)
        about = _succeeded(self._dataset, self._attempts.get(video_id, {}))
        return make_video(video_id, tracks, masks, about)


def make_video(
    video_id: str, tracks: Sequence[Track], masks: pa.Table, about: Mapping[str, Any]
) -> LabelledVideo:
    """about: the row of videos that tells its size and length; may be empty."""
    sizes = masks.group_by(["height", "width"]).aggregate([]).to_pylist()
    if len(sizes) > 1:
        raise LabelsError(f"{video_id}: masks of sizes {sizes}; wanted one")
    height, width = (
        (sizes[0]["height"], sizes[0]["width"])
        if sizes
        else (about.get("height") or 0, about.get("width") or 0)
    )
    if (about.get("height") or height, about.get("width") or width) != (height, width):
        raise LabelsError(
            f"{video_id}: masks of {height}×{width} (rows × columns); wanted the video's "
            f"{about['height']}×{about['width']}"
        )
    frame_indices = masks["frame_index"].to_numpy()
    labelled = int(frame_indices.max()) + 1 if len(frame_indices) else 0
    return LabelledVideo(
        video_id=video_id,
        video_uri=about.get("video_uri") or "",
        height=height,
        width=width,
        num_frames=max(about.get("num_frames_decoded") or 0, labelled),
        fps=about.get("fps"),
        duration_s=about.get("duration_s"),
        tracks=tuple(sorted(tracks, key=lambda track: track.object_id)),
        masks=masks,
    )


def about_video(dataset: Dataset, video_id: str) -> dict[str, Any]:
    """The row of videos that tells its size and length; empty if there is none."""
    rows = dataset.videos([video_id]).to_pylist()
    return _succeeded(dataset, rows[-1] if rows else {})


def _succeeded(dataset: Dataset, attempt: dict[str, Any]) -> dict[str, Any]:
    """The last attempt that succeeded: a later failure says nothing about size and length."""
    if not attempt or attempt["status"] == Status.OK:
        return attempt
    succeeded = dataset.sql(
        "SELECT * FROM videos WHERE video_id = ? AND status = 'ok' "
        "ORDER BY finished_at DESC LIMIT 1",
        [attempt["video_id"]],
    ).to_pylist()
    return dict(succeeded[0] if succeeded else attempt)


def _check_ids(dataset: Dataset, selection: Selection) -> None:
    """A misspelt id would otherwise pass for a video of which nothing is selected."""
    if selection.video_ids:
        named = replace(selection, where=None, reviews=tuple(Review))
        where = " AND ".join(_conditions(named))
        query = f"SELECT DISTINCT video_id FROM current_tracks WHERE {where}"
        known = set(dataset.sql(query, at=selection.at)[0].to_pylist())
        unknown = [video_id for video_id in selection.video_ids if video_id not in known]
        if unknown:
            raise LabelsError(f"{dataset.uri}: no labels of video {unknown[0]!r}")


def _conditions(selection: Selection) -> Iterator[str]:
    reviews = ", ".join(f"'{review}'" for review in selection.reviews)
    yield f"review IN ({reviews})"
    if selection.video_ids is not None:
        ids = ", ".join("'" + video_id.replace("'", "''") + "'" for video_id in selection.video_ids)
        yield f"video_id IN ({ids})" if ids else "false"
    if selection.where:
        yield f"({selection.where})"
