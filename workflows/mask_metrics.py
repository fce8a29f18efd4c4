"""J and F of one pair of masks: region overlap and boundary agreement, as DAVIS 2017 defines them.

Knows nothing of videos, objects, protocols or files: two boolean arrays in, two numbers out.
Parity: tests/test_mask_metrics.py, golden values of DAVIS' own code and a literal second version.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # (H, W)
Keys = npt.NDArray[np.intp]  # (P,) one a pixel, ascending: row · stride + column

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal; DAVIS' bound_th


@dataclass(frozen=True, slots=True)
class PairScore:
    """Agreement of two masks of one frame; both in [0, 1], 1 for two empty masks."""

    j: float
    f: float


def score_pair(predicted: Mask, truth: Mask) -> PairScore:
    """J and F of a predicted mask against the true one, both (H, W) bool.

    Works on the rectangle that holds both masks, so the cost follows the object, not the image.
    Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(
            f"masks to compare: predicted {predicted.shape}, truth {truth.shape}; "
            "wanted two of one (height, width)"
        )
    if truth.flags.f_contiguous:
        # Decoded run lengths lie column by column. J and F are the same for transposed images.
        predicted, truth = predicted.T, truth.T
    window = _common_window(predicted, truth)
    predicted_part, truth_part = predicted[window], truth[window]
    outlines = boundary_map(predicted_part), boundary_map(truth_part)
    return PairScore(
        j=region_similarity(predicted_part, truth_part),
        f=_f_measure(*outlines, radius_px=boundary_tolerance_px(*truth.shape)),
    )


def region_similarity(predicted: Mask, truth: Mask) -> float:
    """J: the area both masks share over the area either covers; 1 if both are empty."""
    either_px = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / either_px if either_px else 1.0


def boundary_tolerance_px(height: int, width: int) -> int:
    """How far apart two outlines may lie and still agree, at this size of image."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))


def boundary_map(mask: Mask) -> Mask:
    """The outline of a mask, one pixel wide: pixels unlike their east, south or south-east one.

    Neighbours outside the image do not count, so an object that fills it has no outline.
    """
    outline = np.zeros(mask.shape, dtype=bool)
    outline[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    outline[:-1] |= mask[:-1] ^ mask[1:]
    outline[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return outline


def _common_window(a: Mask, b: Mask) -> tuple[slice, slice]:
    """Where either mask is set and a pixel beyond, which keeps the outlines as they are."""
    either = a | b
    rows = np.flatnonzero(either.any(axis=1))
    if not rows.size:
        return slice(0), slice(0)
    columns = np.flatnonzero(either[rows[0] : rows[-1] + 1].any(axis=0))
    top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
    return slice(top, int(rows[-1]) + 2), slice(left, int(columns[-1]) + 2)


def _f_measure(predicted: Mask, truth: Mask, radius_px: int) -> float:
    """F of two outlines of one window: the harmonic mean of precision and recall."""
    # Rows lie a radius apart, so that an interval round a pixel never reaches the next row.
    stride = truth.shape[1] + radius_px
    predicted_keys, truth_keys = _pixel_keys(predicted, stride), _pixel_keys(truth, stride)
    if not predicted_keys.size or not truth_keys.size:
        # With one outline missing either precision or recall is 0, and so is F.
        return 1.0 if predicted_keys.size == truth_keys.size else 0.0
    precision = _count_near(predicted_keys, truth_keys, radius_px, stride) / predicted_keys.size
    recall = _count_near(truth_keys, predicted_keys, radius_px, stride) / truth_keys.size
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _pixel_keys(outline: Mask, stride: int) -> Keys:
    rows, columns = np.divmod(np.flatnonzero(outline), max(outline.shape[1], 1))
    keys: Keys = rows * stride + columns
    return keys


def _count_near(pixels: Keys, outline: Keys, radius_px: int, stride: int) -> int:
    """How many of the pixels lie within a Euclidean radius of some pixel of the outline, exactly.

    A disk is a stack of horizontal intervals, one a row; bisection in the sorted outline finds
    the first of its pixels at or after an interval's start.
    """
    candidates = pixels[_in_neighbouring_cell(pixels, outline, radius_px, stride)]
    outline_or_end = np.append(outline, np.iinfo(np.intp).max)
    unmatched = candidates
    # Nearest rows first: most pixels of a fair mask are settled within a few rows.
    for offset in sorted(range(-radius_px, radius_px + 1), key=abs):
        if not unmatched.size:
            break
        reach = math.isqrt(radius_px**2 - offset**2)
        middle = unmatched + offset * stride
        first = outline_or_end[np.searchsorted(outline, middle - reach)]
        unmatched = unmatched[first > middle + reach]
    return candidates.size - unmatched.size


def _in_neighbouring_cell(pixels: Keys, outline: Keys, cell_px: int, stride: int) -> Mask:
    """Which pixels have outline in their own or a neighbouring square cell; (P,) bool.

    Discards at one look what is hopelessly far: a noisy mask has 10^5 pixels of outline.
    """
    num_rows = int(max(pixels[-1], outline[-1])) // stride // cell_px + 1
    num_columns = stride // cell_px + 1
    occupied = np.zeros((num_rows + 2, num_columns + 2), dtype=bool)  # a margin of one cell
    rows, columns = np.divmod(outline, stride)
    for down in range(3):
        for right in range(3):
            occupied[rows // cell_px + down, columns // cell_px + right] = True
    rows, columns = np.divmod(pixels, stride)
    near: Mask = occupied[rows // cell_px + 1, columns // cell_px + 1]
    return near
