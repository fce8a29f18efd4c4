"""A dataset's masks as a mask source: as they are, as corrected, as made by the model, as of then.

Knows nothing of metrics. Videos are listed at once, their masks read when asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from workflows.mask_sources import Rle, VideoMasks
from workflows.query import At, Dataset

MASK_COLUMNS = ["object_id", "frame_index", "counts", "height", "width"]


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
    layer: Layer = Layer.CURRENT
    at: At | None = None


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
        objects = self._objects[video_id]
        masks: dict[int, dict[int, Rle]] = {object_id: {} for object_id in objects}
        for revision in set(objects.values()):
            shown = [object_id for object_id, its in objects.items() if its == revision]
            rows = self._dataset.masks(video_id, shown, at=revision)
            for row in rows.select(
                ["object_id", "frame_index", "counts", "height", "width"]
            ).to_pylist():
                mask = Rle(row["counts"], row["height"], row["width"])
                masks[row["object_id"]][row["frame_index"]] = mask
        return masks


def parse_view(text: str) -> View | None:
    """`current`, `corrected`, `auto`, a revision number or an ISO time with zone; None: no view."""
    if text in set(Layer):
        return View(Layer(text))
    if text.isdecimal():
        return View(at=int(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return View(at=moment) if moment.tzinfo else None
