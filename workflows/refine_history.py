"""A video's revisions, and an earlier one brought back. Only reads; knows nothing of commits."""

from collections.abc import Sequence
from dataclasses import replace

from workflows.query import Dataset
from workflows.refine import Base, removed_track
from workflows.refine_types import RefinementError, RevisionInfo
from workflows.rows import RefinementRow, Source, Track, tracks_from_table


def history(dataset: Dataset, video_id: str) -> tuple[RevisionInfo, ...]:
    """All revisions of a video, newest first."""
    rows = dataset.sql("SELECT * FROM tracks WHERE video_id = ? ORDER BY revision", [video_id])
    tracks = tracks_from_table(rows)
    by_key = {(track.object_id, track.revision): track for track in tracks}
    revisions: dict[int, list[Track]] = {}
    for track in tracks:
        revisions.setdefault(track.revision or 0, []).append(track)
    return tuple(
        RevisionInfo(
            revision=revision,
            source=of_revision[0].source,
            author=of_revision[0].author,
            created_at=of_revision[0].created_at,
            object_ids=tuple(sorted(track.object_id for track in of_revision)),
            review=of_revision[0].review,
            removed_object_ids=tuple(sorted(t.object_id for t in of_revision if t.removed)),
            restored_from=_restored_from(of_revision, by_key),
        )
        for revision, of_revision in sorted(revisions.items(), reverse=True)
    )


def restored_tracks(
    base: Base, earlier: Base, author: str, object_ids: Sequence[int] | None, run_id: str
) -> tuple[Track, ...]:
    """Tracks that show objects as they were earlier; those that are so already are left out.

    Raises RefinementError where nothing would change.
    """
    known = base.tracks.keys() | earlier.tracks.keys()
    wanted = sorted(known if object_ids is None else object_ids)
    if unknown := sorted(set(wanted) - known):
        raise RefinementError(f"{base.video_id}: no objects {unknown}; it has {sorted(known)}")
    refinement: RefinementRow = {
        "request_id": None,
        "base_revision": base.revision,
        "first_frame": None,
        "last_frame": None,
        "converged_frames": [],
    }
    tracks = []
    for object_id in wanted:
        now, then = base.tracks.get(object_id), earlier.tracks.get(object_id)
        shows = None if now is None or now.removed else now.masks_revision
        showed = None if then is None or then.removed else then.masks_revision
        if shows == showed:
            continue
        if showed is None:
            assert now is not None  # it shows something
            gone = removed_track(now, author, refinement)
            tracks.append(replace(gone, run_id=run_id))
        else:
            assert then is not None  # it showed something
            back = replace(then, source=Source.REFINE, author=author, refinement=refinement)
            tracks.append(replace(back, run_id=run_id))
    if not tracks:
        raise RefinementError(
            f"{base.video_id}: revision {base.revision} shows what {earlier.revision} showed"
        )
    return tuple(tracks)


def _restored_from(
    of_revision: Sequence[Track], by_key: dict[tuple[int, int | None], Track]
) -> int | None:
    """The revision whose masks these show, when it is neither this one nor the parents'."""
    for track in of_revision:
        parent = by_key.get((track.object_id, track.parent_revision))
        of_parent = parent.masks_revision if parent else None
        if not track.removed and track.masks_revision not in (track.revision, of_parent):
            return track.masks_revision
    return None
