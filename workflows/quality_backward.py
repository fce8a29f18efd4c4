"""Tracking a few spans of a video backwards, to see whether the masks are found again.

Knows nothing of weights or storage. A tracker that went over to something else forwards follows
that something backwards too, away from where it came from. Spans are spread over the video, each
where its stretch looks worst, so that a little computing is spent where it may tell most.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model import Prompt, rle
from sam2model.video import Video
from workflows.label_engine import MaskEngine
from workflows.quality import frame_evidence
from workflows.quality_signals import TrackSignals, measure

SPAN_FRAMES = 12  # tracked again for each check: half of them before the frame in question
SAME_IOU = 0.5  # below, the mask backwards is another one

Place = tuple[int, int]  # object, frame
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Check:
    """Objects to be tracked from `last`, where they have masks, back to `first`."""

    first: int
    last: int
    object_ids: tuple[int, ...]


def disagreement(
    engine: MaskEngine,
    video: Video,
    masks: pa.Table,
    checks: Sequence[Check],
    deadline_s: float | None = None,
) -> dict[Place, float]:
    """(object, frame) → 1 − IoU of both directions, for each object of each check.

    masks: MASKS_SCHEMA, of the whole video. The frame is the first that both directions do not
    share, or the span's first. Raises what the engine raises.
    """
    found: dict[Place, float] = {}
    for check in checks:
        found |= _carry_out(engine, video, masks, check, deadline_s)
    return found


def plan_checks(masks: pa.Table, share: float) -> list[Check]:
    """Where to look, in the order of time; masks: MASKS_SCHEMA, of a whole video.

    share: of its frames, that may be tracked again; no check where that is less than one takes.
    """
    frames = np.unique(masks["frame_index"].to_numpy()).astype(np.int64)
    number = int(share * len(frames) / SPAN_FRAMES)
    if not number:
        return []
    tracks = measure(masks)
    worst = _worst_evidence(tracks, frames)
    checks = []
    for stretch in np.array_split(np.arange(len(frames)), number):
        from_centre = np.abs(stretch - stretch.mean())
        middle = int(frames[stretch[np.lexsort((from_centre, -worst[stretch]))[0]]])
        first = max(middle - SPAN_FRAMES // 2, int(frames[0]))
        last = min(first + SPAN_FRAMES - 1, int(frames[-1]))
        objects = tuple(_objects_to_check(masks, first, last))
        if objects:
            checks.append(Check(first, last, objects))
    return checks


def _worst_evidence(tracks: list[TrackSignals], frames: IntArray) -> npt.NDArray[np.float64]:
    """Of any object on each frame."""
    worst = np.full(len(frames), -np.inf)
    for track in tracks:
        places = np.searchsorted(frames, track.frame_index)
        np.maximum.at(worst, places, frame_evidence(track.values))
    return worst


def _objects_to_check(masks: pa.Table, first: int, last: int) -> Iterator[int]:
    """Those that are there at the end of a span, with no prompt in it to vouch for them."""
    frames = masks["frame_index"].to_numpy()
    rows = masks.filter(pa.array((frames >= first) & (frames <= last)))
    rows = rows.select(["object_id", "frame_index", "area_px", "is_prompt"])
    is_there: dict[int, bool] = {}
    prompted: set[int] = set()
    for row in rows.to_pylist():
        if row["is_prompt"]:
            prompted.add(row["object_id"])
        if row["frame_index"] == last:
            is_there[row["object_id"]] = row["area_px"] > 0
    yield from sorted(o for o, there in is_there.items() if there and o not in prompted)


def _carry_out(
    engine: MaskEngine, video: Video, masks: pa.Table, check: Check, deadline_s: float | None
) -> dict[Place, float]:
    forward = _counts(masks, check)
    size = video.info.height, video.info.width
    prompts = [
        Prompt(o, check.last, mask=rle.decode(forward[o, check.last], *size))
        for o in check.object_ids
    ]
    ious: dict[Place, float] = {}
    frames = engine.label(video, prompts, check.first, check.last, deadline_s=deadline_s)
    for frame in frames:
        for mask in frame.masks:
            place = mask.object_id, frame.frame_index
            if place in forward:
                ious[place] = rle.iou(forward[place], mask.counts)
    found = {}
    for o in check.object_ids:
        parted = [t for (of, t), iou in ious.items() if of == o and iou < SAME_IOU]
        tried = max(parted) + 1 if parted else check.first
        compared = max(parted) if parted else check.first
        if (o, compared) in ious:
            found[o, min(tried, check.last)] = 1 - ious[o, compared]
    return found


def _counts(masks: pa.Table, check: Check) -> Mapping[Place, str]:
    frames = masks["frame_index"].to_numpy()
    rows = masks.filter(pa.array((frames >= check.first) & (frames <= check.last)))
    columns = (rows[name].to_pylist() for name in ("object_id", "frame_index", "counts"))
    return {(o, t): counts for o, t, counts in zip(*columns, strict=True)}
