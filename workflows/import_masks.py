"""Masks made elsewhere become revisions of a dataset, source `import`: one video, one commit.

Knows nothing of files and their layouts. A source speaks of some frames of an object: there its
masks count, empty ones too; on other frames the object keeps what it has, or loses it on request.
An object whose masks are those it has already is left alone, so importing twice changes nothing.
What a source cannot know stays unsaid: a frame without a label on which it shows nothing either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyarrow as pa

from sam2model import rle
from workflows.export_format import NO_CATEGORY
from workflows.labelled_videos import about_video
from workflows.mask_sources import Rle, VideoMasks
from workflows.prompt_rows import PromptRow
from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.rows import Review, Source, Track, VideoOutcome, tracks_from_table
from workflows.schemas import MASKS_SCHEMA

ASSUMED_FPS = 25.0  # for the times of frames in a video that does not say

Row = dict[str, Any]  # of MASKS_SCHEMA


class MisfitError(ValueError):
    """Masks that do not fit the video they are for; the message says what, got and wanted."""


class ImportOutcome(StrEnum):
    IMPORTED = "imported"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """replace: objects lose their masks on frames of which the source does not speak."""

    run_id: str
    author: str | None = None
    review: Review = Review.OPEN
    replace: bool = False


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of one video. masks: not empty, of the objects in the new revision."""

    video_id: str
    outcome: ImportOutcome
    revision: int | None = None
    objects: int = 0
    objects_unchanged: int = 0
    masks: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A video as the dataset has it. rows: object_id → frame_index → row; times: of frames, s."""

    height: int
    width: int
    num_frames: int
    fps: float
    revision: int  # the video's newest; 0 while nothing is labelled
    tracks: Mapping[int, Track]
    rows: Mapping[int, Mapping[int, Row]]
    times: Mapping[int, float] = field(default_factory=dict)

    def pts_s(self, frame_index: int) -> float:
        return self.times.get(frame_index, frame_index / self.fps)


def import_video(
    writer: DatasetWriter,
    dataset: Dataset,
    video_id: str,
    masks: VideoMasks,
    categories: Mapping[int, str],
    options: ImportOptions,
    attempt: VideoOutcome | None = None,
) -> ImportResult:
    """Commit the objects whose masks differ from those they have.

    attempt: what is known of a video that the dataset does not have yet.
    Raises MisfitError or RleError for masks that do not fit the video, and StaleRevision if
    somebody changed one of its objects since `dataset` was opened.
    """
    known = _read(dataset, video_id, attempt)
    tracks: list[Track] = []
    rows: list[Row] = []
    unchanged = 0
    for object_id, frames in masks.items():
        given = {t: _checked(known, object_id, t, mask) for t, mask in frames.items()}
        before = known.tracks.get(object_id)
        category = _category(before, categories.get(object_id))
        merged = _merge(known.rows.get(object_id, {}), given, options.replace)
        if merged is None and before is not None and before.category != category:
            merged = dict(known.rows[object_id])
        if merged is None:
            unchanged += before is not None
        else:
            of_object = _rows(video_id, object_id, merged, known)
            tracks.append(_track(video_id, object_id, of_object, given, known, category, options))
            rows += of_object
    if not tracks:
        return ImportResult(video_id, ImportOutcome.UNCHANGED, objects_unchanged=unchanged)
    table = pa.Table.from_pylist(rows, schema=MASKS_SCHEMA)
    revision = writer.commit_revision(video_id, known.revision, tracks, table, attempt)
    return ImportResult(
        video_id,
        ImportOutcome.IMPORTED,
        revision,
        objects=len(tracks),
        objects_unchanged=unchanged,
        masks=sum(row["area_px"] > 0 for row in rows),
    )


def _read(dataset: Dataset, video_id: str, attempt: VideoOutcome | None) -> _Known:
    committed = tracks_from_table(dataset.tracks([video_id], with_removed=True))
    tracks = {track.object_id: track for track in committed if not track.removed}
    rows: dict[int, dict[int, Row]] = {}
    for row in dataset.masks(video_id).to_pylist():
        rows.setdefault(row["object_id"], {})[row["frame_index"]] = row
    about = about_video(dataset, video_id)
    if attempt is not None:
        about = {name: getattr(attempt, name) for name in attempt.__slots__}
    some = next((row for frames in rows.values() for row in frames.values()), about)
    if not some.get("height"):
        raise MisfitError(f"{video_id}: not in the dataset, and nothing is known of its frames")
    return _Known(
        height=some["height"],
        width=some["width"],
        num_frames=about.get("num_frames_decoded") or 2**31,
        fps=about.get("fps") or ASSUMED_FPS,
        revision=max((track.revision or 0 for track in committed), default=0),
        tracks=tracks,
        rows=rows,
        times={row["frame_index"]: row["pts_s"] for f in rows.values() for row in f.values()},
    )


def _checked(known: _Known, object_id: int, frame_index: int, mask: Rle) -> str:
    """The mask's run lengths as we write them."""
    where = f"object {object_id}, frame {frame_index}"
    if (mask.height, mask.width) != (known.height, known.width):
        raise MisfitError(
            f"{where}: mask of {mask.height}×{mask.width} (rows × columns); wanted the video's "
            f"{known.height}×{known.width}"
        )
    if frame_index >= known.num_frames:
        raise MisfitError(f"{where}: the video has {known.num_frames} frames")
    try:
        return rle.encode_mask(rle.decode(mask.counts, mask.height, mask.width))
    except rle.RleError as error:
        raise MisfitError(f"{where}: {error}") from error


def _merge(
    before: Mapping[int, Row], given: Mapping[int, str], replace: bool
) -> dict[int, Row | str] | None:
    """frame_index → the row it has or new run lengths; None if the object has all of it already.

    Of a new object also the empty masks count, but one that is never seen is none: label maps have
    numbers that nothing bears.
    """
    if not before and not any(map(rle.area, given.values())):
        return None
    merged: dict[int, Row | str] = {} if replace else dict(before)
    differs = not before or (replace and bool(before.keys() - given.keys()))
    for frame_index, counts in given.items():
        row = before.get(frame_index)
        if row is not None and row["counts"] == counts:
            merged[frame_index] = row
        elif row is not None or not before or rle.area(counts):
            merged[frame_index] = counts
            differs = True
    return dict(sorted(merged.items())) if differs and merged else None


def _rows(
    video_id: str, object_id: int, merged: Mapping[int, Row | str], known: _Known
) -> list[Row]:
    rows = []
    for frame_index, value in merged.items():
        if isinstance(value, str):
            box = rle.box_xyxy(value, known.height, known.width)
            area_px = rle.area(value)
            value = {
                "video_id": video_id,
                "object_id": object_id,
                "frame_index": frame_index,
                "pts_s": known.pts_s(frame_index),
                "revision": 0,  # set at commit
                "counts": value,
                "height": known.height,
                "width": known.width,
                "area_px": area_px,
                "box": dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
                if area_px
                else None,
                "is_prompt": False,
            }
        rows.append(value)
    return rows


def _track(
    video_id: str,
    object_id: int,
    rows: Sequence[Row],
    given: Mapping[int, str],
    known: _Known,
    category: str | None,
    options: ImportOptions,
) -> Track:
    before = known.tracks.get(object_id)
    visible = [row["frame_index"] for row in rows if row["area_px"]]
    return Track(
        video_id=video_id,
        object_id=object_id,
        source=Source.IMPORT,
        prompts=_prompts(before, rows, given, known),
        first_frame=rows[0]["frame_index"],
        last_frame=rows[-1]["frame_index"],
        frames_present=len(visible),
        author=options.author,
        category=category,
        review=options.review,
        run_id=options.run_id,
    )


def _category(before: Track | None, given: str | None) -> str | None:
    """Files that must name one call it `object` where we have none; that changes nothing."""
    had = before.category if before else None
    return had if given is None or given == NO_CATEGORY else given


def _prompts(
    before: Track | None, rows: Sequence[Row], given: Mapping[int, str], known: _Known
) -> tuple[PromptRow, ...]:
    """What a later refinement starts from: the first new mask that shows the object, and the
    earlier prompts on frames that stayed as they were."""
    had = known.rows.get(rows[0]["object_id"], {})
    new = {t for t, counts in given.items() if t not in had or had[t]["counts"] != counts}
    prompts = [p for p in (before.prompts if before else ()) if p["frame_index"] not in new]
    first = next((row for row in rows if row["area_px"] and row["frame_index"] in new), None)
    if first is not None:
        first["is_prompt"] = True
        mask: PromptRow = {
            "object_id": first["object_id"],
            "frame_index": first["frame_index"],
            "mask": {"size": [known.height, known.width], "counts": first["counts"]},
        }
        prompts.append(mask)
    return tuple(prompts)
