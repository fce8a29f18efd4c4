"""What a track's rows say about its health, frame by frame. Knows nothing of weights or storage.

Each signal is 0 where all is well and grows with the oddity, about 1 where a person would look; it
compares a frame with the few before it in the order of tracking, so frames before the first prompt
are read backwards. A prompted frame has none, and nothing is compared across it: a person vouches.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model import rle

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SIGNALS = (
    "score_drop",  # object score below its last frames', while there is a mask
    "score_low",  # object score near or below 0 although there is a mask
    "iou_low",  # predicted IoU
    "iou_drop",
    "unstable",  # share of the mask that a threshold 1 logit from 0 loses
    "grown",  # log of the area over its last frames'
    "shrunk",
    "moved",  # of the box's centre, beyond its last velocity, in its own size
    "lost",  # mask to nothing within three frames
    "overlap",  # of another object's mask, of the smaller of both
    "overlap_rise",  # the blame of which goes to the one that changed
    "disagreement",  # 1 − IoU with the same frame tracked backwards, where that was tried
)
WINDOW = 8  # frames compared with
EDGE_SHARE = 0.02  # of the image: a box so near the edge is leaving
FLICKER_PX = 50  # area below which masks come and go
LARGEST = 3.0  # of any signal: beyond, more says no more
EXCUSED = 0.75  # of what shrinks, moves or goes where another object may hide it, or at the edge
HIDING_SHARE = 0.3  # of its box that others' boxes must cover to hide an object
BOXES_ALIKE = 0.3  # IoU of boxes below which masks are not compared: they share little
PAIRS_AT_ONCE = 2**16  # of boxes, compared in one go: some 20 MB


@dataclass(frozen=True, slots=True, eq=False)
class TrackSignals:
    """The signals of one object. frame_index: (T,), rising; values: (T, len(SIGNALS))."""

    object_id: int
    frame_index: IntArray
    values: FloatArray


def measure(
    masks: pa.Table,
    disagreement: Mapping[tuple[int, int], float] | None = None,
    object_ids: Collection[int] | None = None,
) -> list[TrackSignals]:
    """The signals of objects of one video, by object; masks: MASKS_SCHEMA, any order, of all.

    disagreement: (object, frame) → 1 − IoU of both directions, where known. object_ids: those to be
    measured, all by default; the others only stand in their way.
    """
    if not len(masks):
        return []
    rows = masks.sort_by([("object_id", "ascending"), ("frame_index", "ascending")])
    columns = {name: rows[name].to_numpy() for name in ("object_id", "frame_index", "area_px")}
    columns |= {name: _floats(rows, name) for name in ("object_score", "iou_pred", "stability")}
    columns["is_prompt"] = rows["is_prompt"].fill_null(False).to_numpy()
    columns["box"] = _boxes(rows)
    ids, starts = np.unique(columns["object_id"], return_index=True)
    wanted = np.ones(len(ids), bool) if object_ids is None else np.isin(ids, list(object_ids))
    if not wanted.any():
        return []
    columns["overlap"], columns["blame"], columns["hidden"] = _others(rows, columns, wanted)
    size_px = _size(rows)
    ends = np.append(starts[1:], len(rows))
    tracks = []
    for object_id, start, end in zip(
        ids[wanted].tolist(), starts[wanted], ends[wanted], strict=True
    ):
        track = {name: values[start:end] for name, values in columns.items()}
        known = {t: d for (o, t), d in (disagreement or {}).items() if o == object_id}
        tracks.append(
            TrackSignals(object_id, track["frame_index"], _signals(track, size_px, known))
        )
    return tracks


def _signals(
    track: dict[str, npt.NDArray[np.generic]], size_px: tuple[int, int], known: Mapping[int, float]
) -> FloatArray:
    """(T, len(SIGNALS)) in the order of time."""
    prompts = np.flatnonzero(track["is_prompt"])
    begins = int(prompts[0]) if len(prompts) else 0
    forth = {name: values[begins:] for name, values in track.items()}
    values = _one_way(forth, size_px)
    if begins:
        back = {name: part[begins::-1] for name, part in track.items()}
        values = np.concatenate([_one_way(back, size_px)[:0:-1], values])
    for frame, much in known.items():
        values[np.searchsorted(track["frame_index"], frame), SIGNALS.index("disagreement")] = much
    values[track["is_prompt"].astype(bool)] = 0
    return values


def _one_way(track: dict[str, npt.NDArray[np.generic]], size_px: tuple[int, int]) -> FloatArray:
    """The signals along one direction of tracking, its rows in that order."""
    area = track["area_px"].astype(np.float64)
    present = area > 0
    stretch = np.cumsum(track["is_prompt"].astype(np.int64))
    score, iou, stability = (
        track[name].astype(np.float64) for name in ("object_score", "iou_pred", "stability")
    )
    overlap = track["overlap"].astype(np.float64)
    seen_area = np.where(present, area, np.nan)
    before_area = _median_before(seen_area, stretch)
    growth = np.log(np.where(present, area, np.nan) / before_area)
    excuse = 1 - EXCUSED * np.minimum(track["hidden"].astype(np.float64) / HIDING_SHARE, 1)
    leaps = _leaps(track["box"].astype(np.float64), np.fmax(area, before_area), stretch)
    losses = _losses(track["box"].astype(np.float64), area, before_area, stretch, size_px)
    # Of what is half hidden, scores are low and the box is not where it was.
    trust = np.where(present, np.where(growth < np.log(0.8), excuse * np.exp(growth), 1), 0)
    signals = {
        "score_drop": (_median_before(score, stretch) - score) / 4 * trust,
        "score_low": (2 - score) / 4 * trust,
        "iou_low": (0.85 - iou) / 0.2 * trust,
        "iou_drop": (_median_before(iou, stretch) - iou) / 0.15 * trust,
        "unstable": (0.9 - stability) / 0.2 * trust,
        "grown": growth / np.log(2),
        "shrunk": -growth / np.log(2) * excuse,
        "moved": leaps * trust,
        "lost": losses * excuse,
        "overlap": overlap,
        "overlap_rise": (overlap - _median_before(overlap, stretch)) * track["blame"].astype(float),
        "disagreement": np.zeros(len(area)),
    }
    stacked = np.stack([signals[name] for name in SIGNALS], axis=1)
    clipped: FloatArray = np.clip(np.nan_to_num(stacked, nan=0.0), 0, LARGEST)
    return clipped


def _leaps(box: FloatArray, usual_area: FloatArray, stretch: IntArray) -> FloatArray:
    """How far each centre is from where the last step would have put it, in object sizes."""
    centre = (box[:, :2] + box[:, 2:]) / 2
    step = np.full_like(centre, np.nan)
    step[1:] = centre[1:] - centre[:-1]
    step[1:][stretch[1:] != stretch[:-1]] = np.nan
    usual = np.stack([_median_before(step[:, i], stretch) for i in range(2)], axis=1)
    beyond = np.hypot(*(step - np.nan_to_num(usual)).T)
    leaps: FloatArray = beyond / np.sqrt(usual_area)
    return leaps


def _losses(
    box: FloatArray,
    area: FloatArray,
    before_area: FloatArray,
    stretch: IntArray,
    size_px: tuple[int, int],
) -> FloatArray:
    """At each first frame without a mask: how much of its usual area it had shortly before."""
    height, width = size_px
    losses = np.zeros(len(area))
    gone = np.flatnonzero((area[1:] == 0) & (area[:-1] > 0) & (stretch[1:] == stretch[:-1])) + 1
    usual = np.where(np.isnan(before_area[gone]), area[gone - 1], before_area[gone])
    shortly = np.stack([area[np.maximum(gone - back, 0)] for back in (1, 2, 3)])
    losses[gone] = np.minimum(shortly.max(axis=0, initial=0) / usual, 1)
    losses[gone] *= np.minimum(usual / FLICKER_PX, 1)
    step = np.nan_to_num(box[gone - 1] - box[np.maximum(gone - 2, 0)])  # where it was going
    x0, y0, x1, y1 = np.where(step < 0, box[gone - 1] + step, box[gone - 1] + np.maximum(step, 0)).T
    margin = EDGE_SHARE * max(height, width)
    leaving = (x0 < margin) | (y0 < margin) | (x1 > width - margin) | (y1 > height - margin)
    losses[gone[leaving]] *= 1 - EXCUSED
    return losses


def _median_before(values: FloatArray, stretch: IntArray) -> FloatArray:
    """Of the last WINDOW values of the same stretch before each; NaN where there is none."""
    padded = np.concatenate([np.full(WINDOW, np.nan), values])
    stretches = np.concatenate([np.full(WINDOW, -1), stretch])
    # row t holds what came before value t
    before = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: len(values)].copy()
    of_stretch = np.lib.stride_tricks.sliding_window_view(stretches, WINDOW)[: len(values)]
    before[of_stretch != stretch[:, None]] = np.nan
    before.sort(axis=1)  # NaN last
    count = WINDOW - np.isnan(before).sum(axis=1)
    at = np.arange(len(values))
    low, high = np.maximum(count - 1, 0) // 2, np.maximum(count, 1) // 2
    median: FloatArray = (before[at, low] + before[at, np.minimum(high, WINDOW - 1)]) / 2
    return median


def _others(
    rows: pa.Table, columns: Mapping[str, npt.NDArray[np.generic]], wanted: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What the other objects on its frame mean for each row of a wanted object; else 0.

    The most that one's mask shares with it, of the smaller of both; how much of their both's change
    since the frame before is its own, in [0, 1]; and the most that one's box covers of its own, as
    it is or was just now. wanted: by object, in the order of their ids.
    """
    shares, hidden, blame = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    box, area = columns["box"].astype(np.float64), columns["area_px"].astype(np.int64)
    near = _boxes_nearby(box, columns["object_id"].astype(np.int64))
    change = 1 - _box_iou(box, near[:, 0])
    counts = rows["counts"].combine_chunks()
    table = _rows_by_place(columns)
    own = np.flatnonzero(wanted)
    at_once = max(PAIRS_AT_ONCE // (len(own) * table.shape[1]), 1)
    for start in range(0, len(table), at_once):
        place = table[start : start + at_once]
        all_boxes, own_boxes = _taken(box, place), _taken(near, place[:, own])
        cover = _common_px(own_boxes[:, :, None], all_boxes[:, None, :, None])
        cover = np.nan_to_num(cover / _size_px(own_boxes)[:, :, None])
        cover[:, np.arange(len(own)), own] = 0
        is_there = place[:, own] >= 0
        hidden[place[:, own][is_there]] = cover.max(axis=(2, 3))[is_there]
        for t, i, j in _alike(all_boxes, own):
            a, b = int(place[t, i]), int(place[t, j])
            both = rle.intersection_px(counts[a].as_py(), counts[b].as_py())
            share, changed = both / min(area[a], area[b]), change[a] + change[b]
            for one in (a, b):
                if share > shares[one]:
                    shares[one] = share
                    blame[one] = change[one] / changed if changed else 0.5
    return shares, blame, hidden


def _rows_by_place(columns: Mapping[str, npt.NDArray[np.generic]]) -> IntArray:
    """(T, O): the row of each frame and object, both in order; -1 where there is none."""
    objects, of_object = np.unique(columns["object_id"], return_inverse=True)
    frames, of_frame = np.unique(columns["frame_index"], return_inverse=True)
    table = np.full((len(frames), len(objects)), -1)
    table[of_frame, of_object] = np.arange(len(of_frame))
    return table


def _taken(values: FloatArray, place: IntArray) -> FloatArray:
    """(*place.shape, …): values of rows, NaN where there is none."""
    taken = values[place]
    taken[place < 0] = np.nan
    return taken


def _boxes_nearby(box: FloatArray, object_id: IntArray) -> FloatArray:
    """(N, 3, 4): each row's box and those of its object on the frames before and after."""
    near = np.full((len(box), 3, 4), np.nan)
    near[:, 1] = box
    same = object_id[1:] == object_id[:-1]
    near[1:, 0][same] = box[:-1][same]
    near[:-1, 2][same] = box[1:][same]
    return near


def _alike(box: FloatArray, own: IntArray) -> list[list[int]]:
    """[t, i, j]: pairs of objects, one of them among `own`, whose boxes have much in common.

    box: (T, O, 4). In the order of frames and objects, i < j.
    """
    both, size = _common_px(box[:, own, None], box[:, None]), _size_px(box)
    alike = both > BOXES_ALIKE * (size[:, own, None] + size[:, None] - both)
    t, i, j = np.nonzero(alike)
    pairs = np.stack([t, np.minimum(own[i], j), np.maximum(own[i], j)], axis=1)
    found: list[list[int]] = np.unique(pairs[own[i] != j], axis=0).tolist()
    return found


def _common_px(a: FloatArray, b: FloatArray) -> FloatArray:
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    common: FloatArray = np.prod(np.clip(high - low, 0, None), axis=-1)
    return common


def _box_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """0 where one is absent."""
    both = _common_px(a, b)
    iou: FloatArray = np.nan_to_num(both / (_size_px(a) + _size_px(b) - both))
    return iou


def _size_px(box: FloatArray) -> FloatArray:
    size: FloatArray = np.prod(box[..., 2:] - box[..., :2], axis=-1)
    return size


def _boxes(rows: pa.Table) -> FloatArray:
    """(N, 4) x0, y0, x1, y1; NaN where absent."""
    boxes = rows["box"].combine_chunks()
    corners = [
        boxes.field(name).to_numpy(zero_copy_only=False) for name in ("x0", "y0", "x1", "y1")
    ]
    stacked = np.stack(corners, axis=1).astype(np.float64)
    stacked[rows["area_px"].to_numpy() == 0] = np.nan
    return stacked


def _floats(rows: pa.Table, name: str) -> FloatArray:
    """A column with NaN for null: masks of other tools have no scores."""
    floats: FloatArray = rows[name].cast(pa.float64()).to_numpy()
    return floats


def _size(rows: pa.Table) -> tuple[int, int]:
    """Height and width of the frames."""
    return int(rows["height"][0].as_py()), int(rows["width"][0].as_py())
