"""Which revision comes next, and who may supersede whom. Knows nothing of files and commits.

A video counts its revisions from 1; each commit that touches it takes the next number for the
objects it names. The current row of an object is the one with its highest revision.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import pyarrow.compute as pc

from workflows.data_files import read_files
from workflows.delta_log import TableLog
from workflows.rows import Review, Source, Track, tracks_from_table


class StaleRevision(Exception):
    """The labels a person started from are no longer the current ones."""

    def __init__(self, video_id: str, object_id: int, base: int, newest: int) -> None:
        super().__init__(
            f"{video_id}: object {object_id} is at revision {newest}; "
            f"the change was made from revision {base}"
        )
        self.video_id, self.object_id = video_id, object_id
        self.base_revision, self.newest_revision = base, newest


@dataclass(frozen=True, slots=True)
class CurrentTracks:
    """The current row of every object of one video."""

    video_id: str
    by_object: Mapping[int, Track] = field(default_factory=dict)

    @property
    def newest_revision(self) -> int:
        """0 while nothing is labelled."""
        return max((track.revision or 0 for track in self.by_object.values()), default=0)

    @property
    def protected(self) -> set[int]:
        """The objects that a person prompted, removed or accepted."""
        return {
            object_id
            for object_id, track in self.by_object.items()
            if track.source == Source.REFINE or track.review == Review.ACCEPTED
        }

    def check_fresh(self, base_revision: int, object_ids: Iterable[int]) -> None:
        """Raise StaleRevision if one of the objects has a revision newer than the base."""
        if base_revision > self.newest_revision:
            raise ValueError(
                f"{self.video_id}: base revision {base_revision}; "
                f"its newest is {self.newest_revision}"
            )
        for object_id in object_ids:
            track = self.by_object.get(object_id)
            if track is not None and (track.revision or 0) > base_revision:
                assert track.revision is not None  # committed rows have one
                raise StaleRevision(self.video_id, object_id, base_revision, track.revision)

    def stale(self, tracks: Iterable[Track]) -> StaleRevision | None:
        """Why a refinement cannot be committed: one of its objects is newer than its base."""
        for track in tracks:
            assert track.refinement is not None  # it is a refinement's
            try:
                self.check_fresh(track.refinement["base_revision"], [track.object_id])
            except StaleRevision as stale:
                return stale
        return None

    def number(self, tracks: Iterable[Track], revision: int, committed_at: datetime) -> list[Track]:
        """The tracks of a new revision, each after its object's current one."""
        return [
            replace(
                track,
                revision=revision,
                parent_revision=self._parent(track.object_id),
                masks_revision=track.masks_revision or revision,
                created_at=committed_at,
            )
            for track in tracks
        ]

    def reviewed(
        self,
        object_ids: Collection[int] | None,
        review: Review,
        author: str,
        committed_at: datetime,
    ) -> list[Track]:
        """The tracks of a new revision that shows the same masks, judged by a person."""
        shown = {o for o, track in self.by_object.items() if not track.removed}
        wanted = shown if object_ids is None else set(object_ids)
        if not wanted or not wanted <= shown:
            raise ValueError(
                f"{self.video_id}: objects {sorted(wanted)} to review; wanted some of "
                f"{sorted(shown)}"
            )
        return [
            replace(
                self.by_object[object_id],
                revision=self.newest_revision + 1,
                parent_revision=self._parent(object_id),
                review=review,
                author=author,
                created_at=committed_at,
            )
            for object_id in sorted(wanted)
        ]

    def _parent(self, object_id: int) -> int | None:
        track = self.by_object.get(object_id)
        return track.revision if track else None


def read_current(tracks: TableLog, video_ids: Sequence[str]) -> dict[str, CurrentTracks]:
    """The current rows of some videos, from the tracks table as it is seen now."""
    rows = read_files(
        tracks.storage,
        tracks.folder,
        tracks.paths(video_ids),
        tracks.schema,
        pc.field("video_id").isin(list(video_ids)),
    )
    newest: dict[str, dict[int, Track]] = {video_id: {} for video_id in video_ids}
    for track in tracks_from_table(rows):
        objects = newest[track.video_id]
        known = objects.get(track.object_id)
        if known is None or (track.revision or 0) > (known.revision or 0):
            objects[track.object_id] = track
    return {video_id: CurrentTracks(video_id, objects) for video_id, objects in newest.items()}
