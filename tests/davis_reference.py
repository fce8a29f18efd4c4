"""J, F and two protocols a second time, slow and literal: the oracle of the evaluation's tests.

Shares no code with workflows/: label maps instead of run lengths, whole images, an explicit disk.
Source of the rules: davis2017-evaluation (metrics.py, utils.py, evaluation.py) and vos-benchmark
(evaluator.py), written anew from what they do.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # (H, W)
LabelMaps = npt.NDArray[np.uint8]  # (T, H, W), pixel = object id, 0 background


def reference_j(predicted: Mask, truth: Mask) -> float:
    union = int((predicted | truth).sum())
    return 1.0 if union == 0 else int((predicted & truth).sum()) / union


def reference_outline(mask: Mask) -> Mask:
    height, width = mask.shape
    # Repeating the last row and column makes a missing neighbour equal to the nearest real one.
    wider = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    outline = np.zeros_like(mask)
    for down, right in ((0, 1), (1, 0), (1, 1)):
        outline |= wider[down : down + height, right : right + width] != mask
    return outline


def reference_dilate(outline: Mask, radius_px: int) -> Mask:
    """The union of the whole image shifted by every offset of the disk."""
    height, width = outline.shape
    canvas = np.zeros((height + 2 * radius_px, width + 2 * radius_px), dtype=bool)
    for down in range(2 * radius_px + 1):
        for right in range(2 * radius_px + 1):
            if (down - radius_px) ** 2 + (right - radius_px) ** 2 <= radius_px**2:
                canvas[down : down + height, right : right + width] |= outline
    return canvas[radius_px : radius_px + height, radius_px : radius_px + width]


def reference_f(predicted: Mask, truth: Mask) -> float:
    height, width = truth.shape
    radius_px = math.ceil(0.008 * math.sqrt(height**2 + width**2))
    outlines = [reference_outline(predicted), reference_outline(truth)]
    sizes = [int(outline.sum()) for outline in outlines]
    if sizes == [0, 0]:
        precision, recall = 1.0, 1.0
    elif sizes[0] == 0:
        precision, recall = 1.0, 0.0
    elif sizes[1] == 0:
        precision, recall = 0.0, 1.0
    else:
        precision = int((outlines[0] & reference_dilate(outlines[1], radius_px)).sum()) / sizes[0]
        recall = int((outlines[1] & reference_dilate(outlines[0], radius_px)).sum()) / sizes[1]
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def reference_statistics(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, recall, decay) over frames; frames are numbered from 1, as in DAVIS' Matlab origin."""
    count = len(values)
    edges = [math.floor(1 + (count - 1) * quarter / 4 + 0.5 + 1e-10) for quarter in range(5)]
    first = [values[frame - 1] for frame in range(edges[0], edges[1] + 1)]
    last = [values[frame - 1] for frame in range(edges[3], edges[4] + 1)]
    mean = sum(values) / count
    recall = sum(value > 0.5 for value in values) / count
    return mean, recall, sum(first) / len(first) - sum(last) / len(last)


def reference_davis(predicted: LabelMaps, truth: LabelMaps) -> dict[int, list[float]]:
    """object → J mean, recall, decay, F mean, recall, decay; 1 to the first frame's highest id."""
    scores = {}
    for object_id in range(1, int(truth[0].max()) + 1):
        pairs = [(p == object_id, t == object_id) for p, t in zip(predicted, truth, strict=True)]
        j = reference_statistics([reference_j(*pair) for pair in pairs[1:-1]])
        f = reference_statistics([reference_f(*pair) for pair in pairs[1:-1]])
        scores[object_id] = [*j, *f]
    return scores


def reference_sav(predicted: LabelMaps, truth: LabelMaps) -> dict[int, list[float]]:
    """The same numbers; an object counts from the frame on which either side first shows it."""
    j: dict[int, list[float]] = {}
    f: dict[int, list[float]] = {}
    seen_in_truth: set[int] = set()
    for p, t in list(zip(predicted, truth, strict=True))[1:-1]:
        seen_in_truth |= set(t[t > 0].tolist())
        for object_id in {*j, *t[t > 0].tolist(), *p[p > 0].tolist()}:
            pair = p == object_id, t == object_id
            j.setdefault(object_id, []).append(reference_j(*pair))
            f.setdefault(object_id, []).append(reference_f(*pair))
    return {
        object_id: [*reference_statistics(j[object_id]), *reference_statistics(f[object_id])]
        for object_id in sorted(seen_in_truth)
    }
