"""Drawn videos of labels in which some tracks fail, and where. Knows no model and no pixels.

Objects are ellipses that wander, turn, grow and pass one another; some leave the image, some hide
behind others and come back: what a good track shows as well. Their scores have the size, the
slowness and the occasional dip of a real model's on real videos. A failing track is right until
its onset; then it follows something else (swap), shows nothing although its object is there (loss),
or takes in a growing piece of its surroundings (leak), with scores that may give it away or not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model.rle import encode_masks
from workflows.rows import MASKS_SCHEMA

HEIGHT, WIDTH = 72, 128
FAILURES = ("swap", "loss", "leak")
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True)
class Failure:
    """kind: one of FAILURES; onset: the first frame that is wrong."""

    kind: str
    onset: int


@dataclass(frozen=True)
class DrawnVideo:
    """masks: MASKS_SCHEMA, every object on every frame; failures: object → what goes wrong."""

    video_id: str
    masks: pa.Table
    failures: dict[int, Failure]
    num_frames: int


def drawn_videos(seeds: range, share: float = 0.15) -> Iterator[DrawnVideo]:
    """A video for each seed; share: of tracks, that fail."""
    for seed in seeds:
        yield _draw(seed, share)


def _draw(seed: int, share: float) -> DrawnVideo:
    rng = np.random.default_rng(seed)
    num_frames, num_objects = int(rng.integers(40, 100)), int(rng.integers(1, 5))
    true = np.stack([_wander(rng, num_frames) for _ in range(num_objects)])
    for front in range(num_objects):  # an earlier object hides later ones
        true[front + 1 :] &= ~true[front]
    failures, masks = {}, true.copy()
    for o in range(num_objects):
        if rng.random() < share:
            failure = _plant(rng, str(rng.choice(FAILURES)), o, true, masks)
            if failure is not None:
                failures[o] = failure
    rows: list[dict[str, Any]] = []
    for o in range(num_objects):
        begin = int(np.argmax(true[o].sum(axis=(1, 2)) > 60))
        scores = _scores(rng, true[o], masks[o], failures.get(o))
        shaken = np.stack([_shaken(rng, mask) for mask in masks[o]])
        rows += _rows(f"v{seed}", o, begin, shaken, scores)
    table = pa.Table.from_pylist(rows, schema=MASKS_SCHEMA)
    return DrawnVideo(f"v{seed}", table, failures, num_frames)


def _wander(rng: Rng, num_frames: int) -> npt.NDArray[np.bool_]:
    """(T, H, W): an ellipse on a smooth path, some out of the image for a while."""
    time = np.arange(num_frames)

    def smooth(size: float, slowness: float) -> npt.NDArray[np.float64]:
        phase, period = rng.uniform(0, 2 * np.pi), slowness * rng.uniform(0.6, 1.6)
        return size * (np.sin(2 * np.pi * time / period + phase) + 0.07 * _ar(rng, num_frames, 0.9))

    radius = rng.uniform(7, 16)
    reach = rng.choice([0.25, 0.35, 0.6], p=[0.5, 0.3, 0.2])  # the last leaves the image
    fast = rng.choice([120.0, 60.0, 25.0], p=[0.5, 0.35, 0.15])
    x = WIDTH * (rng.uniform(0.3, 0.7) + smooth(reach, fast))
    y = HEIGHT * (rng.uniform(0.3, 0.7) + smooth(reach * 0.7, fast))
    long = radius * np.exp(smooth(0.25, 50) + 0.03 * rng.standard_normal(num_frames))
    wide = long * rng.uniform(0.5, 1) * np.exp(smooth(rng.choice([0.05, 0.3]), 18))
    turn = smooth(1.0, 40)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    dx, dy = columns - x[:, None, None], rows - y[:, None, None]
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    u, v = (cos * dx + sin * dy) / long[:, None, None], (cos * dy - sin * dx) / wide[:, None, None]
    inside: npt.NDArray[np.bool_] = u**2 + v**2 <= 1
    return inside


def _plant(
    rng: Rng, kind: str, o: int, true: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_]
) -> Failure | None:
    """Make track o fail in place; None where it could not be seen to."""
    num_frames = true.shape[1]
    seen = true[o].sum(axis=(1, 2)) > 60
    onsets = [t for t in range(10, num_frames - 6) if seen[t - 1 : t + 5].all()]
    if not onsets:
        return None
    onset = int(rng.choice(onsets))
    end = num_frames if rng.random() < 0.6 else min(onset + int(rng.integers(6, 30)), num_frames)
    span = slice(onset, end)
    right = masks[o].copy()
    if kind == "swap":
        # To something that nobody labels, or to the nearest of the others.
        others = [_wander(rng, num_frames)] if rng.random() < 0.4 else list(np.delete(true, o, 0))
        others = [other for other in others if other[onset].sum() > 60]
        if not others:
            return None
        centre = np.argwhere(true[o, onset]).mean(axis=0)
        masks[o, span] = min(others, key=lambda other: _distance(other[onset], centre))[span]
    elif kind == "loss":
        fading = int(rng.integers(0, 3))  # frames in which it goes
        for i in range(fading):
            half = np.argwhere(true[o, onset + i])[:, 1]
            masks[o, onset + i, :, : int(np.quantile(half, (i + 1) / (fading + 1)))] = False
        masks[o, onset + fading : end] = False
    else:
        grows = int(rng.integers(1, 8))  # frames until it is at its largest
        size, place = rng.uniform(0.8, 1.6), rng.uniform(-1, 1, 2)
        columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        for t in range(onset, end):
            spots = np.argwhere(true[o, t])
            if not len(spots):
                continue
            radius = np.sqrt(len(spots) / np.pi) * size * min((t - onset + 1) / grows, 1)
            y, x = spots.mean(axis=0) + place * np.sqrt(len(spots) / np.pi)
            masks[o, t] |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    wrong = [_iou(masks[o, t], right[t]) < 0.7 for t in range(onset, onset + 6)]
    if sum(wrong) < 3:  # it happened where it makes no difference
        masks[o] = right
        return None
    return Failure(kind, onset)


def _distance(mask: Mask, from_: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.argwhere(mask).mean(axis=0) - from_))


def _iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _scores(
    rng: Rng, true: Mask, mask: Mask, failure: Failure | None
) -> dict[str, npt.NDArray[np.float64]]:
    """object_score, iou_pred and stability of every frame."""
    num_frames = len(true)
    area = mask.sum(axis=(1, 2)).astype(np.float64)
    shown = area / np.maximum(np.maximum.accumulate(area), 1)  # less of it than there was
    small = np.exp(-area / 60)
    score = rng.uniform(5, 9) + 0.7 * _ar(rng, num_frames, 0.8) - 3 * (1 - shown)
    iou = rng.uniform(0.86, 0.96) + 0.02 * _ar(rng, num_frames, 0.7) - 0.15 * small
    stability = rng.uniform(0.93, 0.98) + 0.01 * _ar(rng, num_frames, 0.7) - 0.2 * small
    for _ in range(rng.poisson(0.8)):  # blur and shadow: a dip without a failure
        at, long = int(rng.integers(0, num_frames)), int(rng.integers(1, 5))
        depth = rng.uniform(0.3, 1)
        score[at : at + long] -= 3 * depth
        iou[at : at + long] -= 0.12 * depth
        stability[at : at + long] -= 0.08 * depth
    if failure is not None:
        late = np.arange(num_frames) >= failure.onset
        shock = np.exp(-np.maximum(np.arange(num_frames) - failure.onset, 0) / 4) * late
        tell = rng.uniform(0.2, 1)  # how much the model notices
        lasting = 0.3 if failure.kind == "swap" else 0.7
        score -= 5 * tell * np.maximum(shock, lasting * late * (failure.kind != "swap"))
        iou -= 0.25 * tell * np.maximum(shock, lasting * late)
        stability -= 0.2 * tell * np.maximum(shock, lasting * late)
    absent = area == 0
    score[absent] = -rng.uniform(1, 8) + 0.7 * _ar(rng, num_frames, 0.8)[absent]
    return {
        "object_score": score,
        "iou_pred": np.clip(iou, 0, 1),
        "stability": np.where(absent, 0, np.clip(stability, 0, 1)),
    }


def _ar(rng: Rng, count: int, memory: float) -> npt.NDArray[np.float64]:
    """Noise of size 1 that remembers its last value."""
    noise, values = rng.standard_normal(count), np.empty(count)
    last = 0.0
    for i in range(count):
        last = memory * last + np.sqrt(1 - memory**2) * noise[i]
        values[i] = last
    return values


def _shaken(rng: Rng, mask: Mask) -> Mask:
    """The mask with its outline a little off."""
    down, right = rng.integers(0, 3, 2)
    shifted = np.pad(mask, 1)[down : down + HEIGHT, right : right + WIDTH]
    return mask & shifted if rng.random() < 0.5 else mask | shifted


def _rows(
    video_id: str, o: int, begin: int, masks: Mask, scores: dict[str, npt.NDArray[np.float64]]
) -> Iterator[dict[str, Any]]:
    strings = encode_masks(masks)
    for t, mask in enumerate(masks):
        spots = np.argwhere(mask)
        box = None
        if len(spots):
            (y0, x0), (y1, x1) = spots.min(axis=0), spots.max(axis=0) + 1
            box = {"x0": float(x0), "y0": float(y0), "x1": float(x1), "y1": float(y1)}
        yield {
            "video_id": video_id,
            "object_id": o,
            "frame_index": t,
            "pts_s": t / 24,
            "revision": 1,
            "counts": strings[t],
            "height": HEIGHT,
            "width": WIDTH,
            "area_px": len(spots),
            "box": box,
            **{name: float(values[t]) for name, values in scores.items()},
            "is_prompt": t == begin,
        }
