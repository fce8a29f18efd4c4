"""A dataset's masks as a mask source: as they are, as corrected, as made by the model, as of then.

Knows nothing of metrics. Videos are listed at once, their masks read when asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from typing import Any

from workflows.mask_sources import Rle, VideoMasks
from workflows.query import At, Dataset, QueryError, parse_at
from workflows.rows import Track, tracks_from_table

ROW_COLUMNS = ["object_id", "frame_index", "counts", "height", "width", "iou_pred"]


class Layer(StrEnum):
    """Which revision of an object."""

    CURRENT = "current"
    CORRECTED = "corrected"  # current, of objects that a person made, corrected or accepted
    AUTO = "auto"  # the newest that a bulk job made


OBJECTS = {
    Layer.CURRENT: "SELECT video_id, object_id, masks_revision FROM current_tracks",
    Layer.CORRECTED: """
        SELECT video_id, object_id, masks_revision FROM current_tracks
        WHERE source <> 'bulk' OR review = 'accepted'
    """,
    Layer.AUTO: """
        SELECT video_id, object_id, arg_max(masks_revision, revision) FROM tracks
        WHERE source = 'bulk' GROUP BY ALL
    """,
}


@dataclass(frozen=True, slots=True)
class View:
    """One state of a dataset's masks."""

    layer: Layer = Layer.CURRENT
    at: At | None = None

    @property
    def title(self) -> str:
        if self.at is None:
            return str(self.layer)
        if isinstance(self.at, int):
            return f"revision {self.at}"
        return f"as of {self.at.astimezone(UTC):%F %T} UTC"


class DatasetMasks(Mapping[str, VideoMasks]):
    """Video → object → frame → mask, of one view."""

    def __init__(self, dataset: Dataset, view: View) -> None:
        self._dataset = dataset
        self._at = view.at
        self._objects: dict[str, dict[int, int]] = {}  # video_id → object_id → masks' revision
        columns = dataset.sql(OBJECTS[view.layer] + " ORDER BY ALL", at=view.at).columns
        for video_id, object_id, revision in zip(*(c.to_pylist() for c in columns), strict=True):
            self._objects.setdefault(video_id, {})[object_id] = revision

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._objects

    def __getitem__(self, video_id: str) -> VideoMasks:
        masks: dict[int, dict[int, Rle]] = {object_id: {} for object_id in self._objects[video_id]}
        for row in self.rows(video_id):
            mask = Rle(row["counts"], row["height"], row["width"])
            masks[row["object_id"]][row["frame_index"]] = mask
        return masks

    def rows(
        self, video_id: str, frames: tuple[int, int] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The masks of a video, ROW_COLUMNS. frames: first and last."""
        for revision, object_ids in self._shown(video_id):
            table = self._dataset.masks(video_id, object_ids, frames, at=revision)
            yield from table.select(ROW_COLUMNS).to_pylist()

    def tracks(self, video_id: str) -> list[Track]:
        """Of each object the row that came with the masks shown."""
        return [
            track
            for revision, object_ids in self._shown(video_id)
            for track in tracks_from_table(self._dataset.tracks([video_id], at=revision))
            if track.object_id in object_ids
        ]

    def _shown(self, video_id: str) -> Iterator[tuple[int, list[int]]]:
        """Revisions and the objects that show them. Raises KeyError for an unknown video."""
        objects = self._objects[video_id]
        for revision in sorted(set(objects.values())):
            yield revision, [object_id for object_id, its in objects.items() if its == revision]


def parse_view(text: str) -> View | None:
    """`current`, `corrected`, `auto`, a revision number or an ISO time (`parse_at`); None: none."""
    if text in set(Layer):
        return View(Layer(text))
    try:
        return View(at=parse_at(text))
    except QueryError:
        return None
