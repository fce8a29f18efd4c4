"""Fit the weights of workflows/quality.py on drawn videos and print that module's constants.

    python tests/fit_quality.py > workflows/quality_weights.py

Frames are fitted on the first seeds, tracks on further ones, and what is reported (on standard
error, for docs/quality.md) is of seeds that neither saw.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from planted_failures import DrawnVideo, drawn_videos

from workflows import quality
from workflows.quality_signals import SIGNALS, TrackSignals, measure

FRAME_SEEDS, TRACK_SEEDS, HELD_OUT_SEEDS = range(400), range(400, 900), range(10_000, 10_400)
AFTER_ONSET = 4  # frames in which a failure shows
ROUNDS = 4
LEAST_WEIGHT = 0.3
PENALTY = 1e-5  # on squared weights: signals that tell the same share them
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One drawn track: its signals, and the frame and kind of its failure if it has one."""

    video_id: str
    signals: TrackSignals
    onset: int | None
    kind: str | None


def samples(videos: Sequence[DrawnVideo], with_backward: bool = True) -> list[Sample]:
    found = []
    for video in videos:
        disagreement = tried_backwards(video) if with_backward else {}
        for signals in measure(video.masks, disagreement):
            failure = video.failures.get(signals.object_id)
            onset, kind = (failure.onset, failure.kind) if failure else (None, None)
            found.append(Sample(video.video_id, signals, onset, kind))
    return found


def tried_backwards(video: DrawnVideo) -> dict[tuple[int, int], float]:
    """What tracking backwards over some spans might have shown: much where a failure began."""
    rng = np.random.default_rng(int(video.video_id[1:]))
    found = {}
    for object_id in sorted(set(video.masks["object_id"].to_pylist())):
        failure = video.failures.get(object_id)
        onset = failure.onset if failure else None
        if rng.random() < 0.5:  # not tried
            continue
        frame = int(rng.integers(0, video.num_frames)) if onset is None else onset
        much = rng.beta(1, 5) if onset is None or rng.random() < 0.25 else rng.beta(4, 2)
        found[object_id, frame] = float(much)
    return found


def fit_frames(tracks: Sequence[Sample]) -> tuple[float, list[float]]:
    """Which frame a failure shows on follows from the weights, and they from it: a few rounds."""
    bias, weights = 0.0, [1.0] * len(SIGNALS)
    for _ in range(ROUNDS):
        bias, weights = fit(*frames_of(tracks, np.array(weights)))
    return bias, weights


def frames_of(tracks: Sequence[Sample], weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Signals of frames and whether a failure just began; frames later in one are left out."""
    values, labels = [], []
    for track in tracks:
        time = track.signals.frame_index
        onset = 10**9 if track.onset is None else track.onset
        just = np.flatnonzero((time >= onset) & (time < onset + AFTER_ONSET))
        # A failure shows once, at once or a little later: its oddest frame counts, no other does.
        oddest = just[(track.signals.values[just] * weights).max(axis=1).argsort()[-1:]]
        values += [track.signals.values[time < onset], track.signals.values[oddest]]
        labels += [np.zeros(int((time < onset).sum())), np.ones(len(oddest))]
    return np.concatenate(values), np.concatenate(labels)


def fit(values: FloatArray, labels: FloatArray) -> tuple[float, list[float]]:
    """Logistic regression with weights above 0: no oddity speaks for a track, and none is ignored,
    for real tracks fail in more ways than drawn ones."""
    x, y = torch.tensor(values), torch.tensor(labels)
    raw = torch.full((x.shape[1],), -1.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw, bias], max_iter=400, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        weights = LEAST_WEIGHT + torch.nn.functional.softplus(raw)
        logits = x @ weights + bias
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        total = entropy + PENALTY * weights.square().mean()
        total.backward()
        return total

    optimiser.step(loss)
    weights = LEAST_WEIGHT + torch.nn.functional.softplus(raw)
    return float(bias.detach()), weights.detach().tolist()


def fit_tracks(tracks: Sequence[Sample]) -> tuple[float, list[float]]:
    """From the evidence of the frame weights that quality.py holds at this moment."""
    values = np.stack(
        [
            quality.track_features(t.signals.values, quality.frame_evidence(t.signals.values))
            for t in tracks
        ]
    )
    return fit(values, np.array([float(t.onset is not None) for t in tracks]))


def recall_at(share: float, tracks: Sequence[Sample], doubt: FloatArray) -> dict[str, float]:
    """Of failing tracks, how many are among the most doubtful; over all, and by kind."""
    failing = np.array([t.onset is not None for t in tracks])
    first = np.zeros(len(tracks), bool)
    first[np.argsort(-doubt, kind="stable")[: round(share * len(tracks))]] = True
    by_kind = {
        kind: float(first[[t.kind == kind for t in tracks]].mean())
        for kind in sorted({t.kind for t in tracks if t.kind})
    }
    return {"all": float(first[failing].mean()), **by_kind}


def reliability(
    failing: npt.NDArray[np.bool_], doubt: FloatArray
) -> list[tuple[float, float, int]]:
    """Mean doubt, share that failed, and tracks, of each tenth of doubt that occurs."""
    tenth = np.minimum((doubt * 10).astype(int), 9)
    return [
        (
            float(doubt[tenth == i].mean()),
            float(failing[tenth == i].mean()),
            int((tenth == i).sum()),
        )
        for i in range(10)
        if (tenth == i).any()
    ]


def calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """Mean distance of doubt and share that failed, over tracks."""
    total = sum(count for *_, count in bins)
    return sum(abs(doubt - share) * count for doubt, share, count in bins) / total


def found_the_frame(tracks: Sequence[Sample], within: int) -> float:
    """Of failing tracks with a flag, how often the most doubtful flag is near the onset."""
    near = []
    for track in tracks:
        flags = quality.judge(track.signals).flags
        if track.onset is not None and flags:
            worst = max(flags, key=lambda flag: (flag["doubt"], -flag["frame_index"]))
            near.append(abs(worst["frame_index"] - track.onset) <= within)
    return float(np.mean(near))


def report(tracks: Sequence[Sample], say: Callable[[str], None]) -> None:
    failing = np.array([t.onset is not None for t in tracks])
    doubt = np.array([quality.judge(t.signals).doubt for t in tracks])
    say(f"{len(tracks)} tracks, {failing.sum()} failing ({failing.mean():.1%})")
    for share in (0.05, 0.1, 0.2):
        found = ", ".join(f"{k} {v:.2f}" for k, v in recall_at(share, tracks, doubt).items())
        say(f"recall in the first {share:.0%}: {found}")
    bins = reliability(failing, doubt)
    say(f"calibration error {calibration_error(bins):.3f}")
    for mean, share, count in bins:
        say(f"| {mean:.2f} | {share:.2f} | {count} |")
    say(f"worst flag within 5 frames of the onset: {found_the_frame(tracks, 5):.2f}")


def main() -> None:
    bias, weights = fit_frames(samples(list(drawn_videos(FRAME_SEEDS, share=0.3))))
    quality.FRAME_BIAS, quality.FRAME_WEIGHTS = bias, tuple(weights)  # type: ignore[attr-defined]
    of_tracks = samples(list(drawn_videos(TRACK_SEEDS, share=0.1)))
    quality.TRACK_BIAS, quality.TRACK_WEIGHTS = fit_tracks(of_tracks)  # type: ignore[attr-defined]
    print('"""Printed by tests/fit_quality.py."""\n')
    print(f"FRAME_BIAS = {bias:.3f}")
    print("FRAME_WEIGHTS = (")
    for name, weight in zip(SIGNALS, weights, strict=True):
        print(f"    {weight:.3f},  # {name}")
    print(f")\nTRACK_BIAS = {quality.TRACK_BIAS:.3f}")  # type: ignore[attr-defined]
    names = ("worst frame", "second worst frame", *(f"mean {name}" for name in quality.LASTING))
    print("TRACK_WEIGHTS = (")
    for name, weight in zip(names, quality.TRACK_WEIGHTS, strict=True):  # type: ignore[attr-defined]
        print(f"    {weight:.3f},  # {name}")
    print(")")
    held_out = list(drawn_videos(HELD_OUT_SEEDS, share=0.1))
    for with_backward in (False, True):
        print(f"backward check: {with_backward}", file=sys.stderr)
        report(samples(held_out, with_backward), lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    main()
