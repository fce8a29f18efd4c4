"""How much a track is to be doubted, and where: a number in [0, 1] and flags, from its rows alone.

Knows nothing of models, storage or whoever made the masks. Both are calibrated: of tracks with
doubt 0.7, 7 in 10 are to have a failure. The weights are logistic regressions fitted by
tests/fit_quality.py on drawn videos with planted failures; docs/quality.md says how well they do
on others, and what that does not show.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workflows.quality_signals import SIGNALS, TrackSignals, measure
from workflows.quality_weights import FRAME_BIAS, FRAME_WEIGHTS, TRACK_BIAS, TRACK_WEIGHTS
from workflows.rows import FlagRow, Track

FloatArray = npt.NDArray[np.float64]

FLAG_AT = 0.3  # doubt of a frame from which it is flagged
WORST_AT = 0.03  # the same of a track's worst frame: whoever looks at the track should begin there
FLAGS_APART = 8  # frames; one failure is one flag
LASTING = ("score_low", "iou_low", "unstable", "overlap")  # signals that count by their mean too
MOST_FLAGS = 16  # of one track: more say that it wants doing again


class FlagKind(StrEnum):
    """What stands out on a flagged frame."""

    SCORE_DROP = "score_drop"
    LOW_IOU = "low_iou"
    UNSTABLE = "unstable"
    AREA_JUMP = "area_jump"
    CENTROID_JUMP = "centroid_jump"
    LOST = "lost"
    OVERLAP = "overlap"
    BACKWARD = "backward_disagreement"


KIND_OF_SIGNAL = {
    "score_drop": FlagKind.SCORE_DROP,
    "score_low": FlagKind.SCORE_DROP,
    "iou_low": FlagKind.LOW_IOU,
    "iou_drop": FlagKind.LOW_IOU,
    "unstable": FlagKind.UNSTABLE,
    "grown": FlagKind.AREA_JUMP,
    "shrunk": FlagKind.AREA_JUMP,
    "moved": FlagKind.CENTROID_JUMP,
    "lost": FlagKind.LOST,
    "overlap": FlagKind.OVERLAP,
    "overlap_rise": FlagKind.OVERLAP,
    "disagreement": FlagKind.BACKWARD,
}
KINDS = tuple(KIND_OF_SIGNAL[name] for name in SIGNALS)


@dataclass(frozen=True, slots=True)
class Quality:
    """doubt: the chance of a failure somewhere in the track. flags: by frame."""

    doubt: float
    flags: tuple[FlagRow, ...]


def assess(
    masks: pa.Table,
    disagreement: Mapping[tuple[int, int], float] | None = None,
    object_ids: Collection[int] | None = None,
) -> dict[int, Quality]:
    """The quality of objects of one video; masks: MASKS_SCHEMA, every frame of each object.

    disagreement: (object, frame) → 1 − IoU with tracking backwards, as `quality_backward` finds it.
    object_ids: those to be assessed, all by default; masks has the others too, for what they hide.
    """
    found = measure(masks, disagreement, object_ids)
    return {signals.object_id: judge(signals) for signals in found}


def with_quality(
    tracks: Iterable[Track],
    masks: pa.Table,
    disagreement: Mapping[tuple[int, int], float] | None = None,
) -> tuple[Track, ...]:
    """The tracks with doubt and flags; those without masks here stay as they are.

    masks: of all objects of the video, also of those whose tracks are not given.
    """
    tracks = tuple(tracks)
    found = assess(masks, disagreement, [track.object_id for track in tracks])
    return tuple(
        replace(track, doubt=found[track.object_id].doubt, flags=found[track.object_id].flags)
        if track.object_id in found
        else track
        for track in tracks
    )


def judge(signals: TrackSignals) -> Quality:
    """One track's quality."""
    evidence = frame_evidence(signals.values)
    logit = TRACK_BIAS + float(track_features(signals.values, evidence) @ np.array(TRACK_WEIGHTS))
    return Quality(_as_stored(_sigmoid(np.float64(logit))), _flags(signals, evidence))


def frame_evidence(values: FloatArray) -> FloatArray:
    """(T,) logits that a failure begins at or just before each frame."""
    evidence: FloatArray = FRAME_BIAS + values @ np.array(FRAME_WEIGHTS)
    return evidence


def track_features(values: FloatArray, evidence: FloatArray) -> FloatArray:
    """What a track's doubt is made of: its worst frame, its second worst elsewhere, and how low
    scores are, and how much it overlaps others, on average."""
    worst = int(evidence.argmax())
    elsewhere = np.delete(evidence, slice(max(worst - FLAGS_APART, 0), worst + FLAGS_APART + 1))
    second = elsewhere.max(initial=FRAME_BIAS)
    means = values[:, [SIGNALS.index(name) for name in LASTING]].mean(axis=0)
    features: FloatArray = np.array([evidence[worst] - FRAME_BIAS, second - FRAME_BIAS, *means])
    return features


def _flags(signals: TrackSignals, evidence: FloatArray) -> tuple[FlagRow, ...]:
    """The most doubtful frames, none near another that is more so; of equals the first."""
    doubt = _sigmoid(evidence)
    order = np.argsort(-doubt, kind="stable")
    chosen: list[int] = []
    for place in order[doubt[order] >= np.where(order == order[0], WORST_AT, FLAG_AT)].tolist():
        if all(abs(place - other) > FLAGS_APART for other in chosen):
            chosen.append(place)
        if len(chosen) == MOST_FLAGS:
            break
    weighted = signals.values * np.array(FRAME_WEIGHTS)
    return tuple(
        FlagRow(
            frame_index=int(signals.frame_index[place]),
            kind=str(KINDS[int(weighted[place].argmax())]),
            doubt=_as_stored(doubt[place]),
        )
        for place in sorted(chosen)
    )


def _as_stored(doubt: FloatArray) -> float:
    """As tracks keep it, in float32, so that what is told and what is read back are equal."""
    return float(np.float32(doubt))


def _sigmoid(logit: FloatArray | np.float64) -> FloatArray:
    doubt: FloatArray = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    return doubt
