"""J, F and J&F of predicted against true masks: per object, video and dataset, by protocol.

Knows nothing of models, Ray or storage: two mappings video → object → frame → run lengths come
in, scores go out. The protocols differ in which objects and frames count:

davis       objects of the video's first true frame (ids up to its highest), on their true frames
            less the video's first and last. Objects that appear later are left out.
sav         each object on its true frames less its first and last, from its first sighting in
            truth or prediction. As in SA-V's evaluator and vos-benchmark. An early false positive
            adds frames where both masks are empty, and so can raise the score.
all-frames  each object on all its true frames; one where both masks are empty scores 1.

Decay follows DAVIS' definition; DAVIS' own code errs beyond 256 frames, this does not.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum

from sam2model import rle
from workflows.evaluation_scores import (
    Evaluation,
    ObjectScore,
    Omission,
    OmissionReason,
    Statistics,
)
from workflows.mask_metrics import PairScore, score_pair
from workflows.mask_sources import MaskSource, ObjectMasks, Rle, VideoMasks

# object_id → frames to score, ascending and at least one, or why there are none
ScoredFrames = dict[int, list[int] | OmissionReason]


class EvaluationError(ValueError):
    """Masks that cannot be compared; the message says what, where, got and wanted."""


class Protocol(StrEnum):
    DAVIS = "davis"
    SAV = "sav"
    ALL_FRAMES = "all-frames"


class MissingVideos(StrEnum):
    """What becomes of a true video without any prediction."""

    FAIL = "fail"
    SKIP = "skip"  # left out: one omission a video
    EMPTY = "empty"  # scored as if every mask were predicted empty


def evaluate(
    truth: MaskSource,
    predicted: MaskSource,
    protocol: Protocol,
    missing: MissingVideos = MissingVideos.FAIL,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Evaluation:
    """Scores of all videos of the truth; predicted videos beyond them are not looked at.

    progress: hands on the videos' ids, each when its turn comes.

    Where a predicted video lacks an object or a frame, an empty mask counts as its prediction.
    Raises EvaluationError for masks that cannot be decoded or differ in size, and for videos
    without prediction if missing is FAIL.
    """
    absent = [video_id for video_id in truth if video_id not in predicted]
    if absent and missing == MissingVideos.FAIL:
        raise EvaluationError(
            f"{len(absent)} of {len(truth)} videos have no prediction, the first is {absent[0]}; "
            "wanted masks for each, or another choice for missing videos (skip, empty)"
        )
    objects: list[ObjectScore] = []
    omissions: list[Omission] = []
    for video_id in progress(truth):
        if video_id not in predicted and missing == MissingVideos.SKIP:
            omissions.append(Omission(video_id, None, OmissionReason.NOT_PREDICTED))
            continue
        masks = predicted[video_id] if video_id in predicted else {}
        scores, left_out = score_video(video_id, truth[video_id], masks, protocol)
        objects += scores
        omissions += left_out
    return Evaluation(protocol, tuple(objects), tuple(omissions))


def score_video(
    video_id: str, truth: VideoMasks, predicted: VideoMasks, protocol: Protocol
) -> tuple[list[ObjectScore], list[Omission]]:
    """Scores of one video's objects, and what has none. Raises EvaluationError as evaluate."""
    scores: list[ObjectScore] = []
    omissions: list[Omission] = []
    if not truth:
        omissions.append(Omission(video_id, None, OmissionReason.NO_OBJECT))
    try:
        for object_id, frames in frames_to_score(truth, predicted, protocol).items():
            if isinstance(frames, OmissionReason):
                omissions.append(Omission(video_id, object_id, frames))
            else:
                masks = predicted.get(object_id, {})
                scores.append(_score_object(video_id, object_id, truth[object_id], masks, frames))
    except rle.RleError as error:
        raise EvaluationError(f"{video_id}: {error}") from error
    unknown = sorted(predicted.keys() - truth.keys())
    omissions += [Omission(video_id, each, OmissionReason.NOT_IN_TRUTH) for each in unknown]
    return scores, omissions


def frames_to_score(truth: VideoMasks, predicted: VideoMasks, protocol: Protocol) -> ScoredFrames:
    """For each true object the frames that the protocol scores, or why it scores none."""
    if protocol == Protocol.DAVIS:
        return _davis_frames(truth)
    if protocol == Protocol.SAV:
        return {i: _sav_frames(truth[i], predicted.get(i, {})) for i in truth}
    return {i: _all_frames(truth[i]) for i in truth}


def _davis_frames(truth: VideoMasks) -> ScoredFrames:
    video_frames = {frame_index for masks in truth.values() for frame_index in masks}
    first, last = min(video_frames, default=0), max(video_frames, default=0)
    highest_id = max((i for i in truth if _visible_frames(truth[i], [first])), default=-1)
    frames: ScoredFrames = {}
    for object_id, masks in truth.items():
        if object_id > highest_id:
            frames[object_id] = OmissionReason.NOT_ON_FIRST_FRAME
        else:
            inner = sorted(masks.keys() - {first, last})
            frames[object_id] = inner or OmissionReason.NO_SCORED_FRAME
    return frames


def _sav_frames(truth: ObjectMasks, predicted: ObjectMasks) -> list[int] | OmissionReason:
    inner = sorted(truth)[1:-1]
    if not inner:
        return OmissionReason.NO_SCORED_FRAME
    if not _visible_frames(truth, inner):
        return OmissionReason.NEVER_VISIBLE
    first_sighting = min(_visible_frames(truth, inner) + _visible_frames(predicted, inner))
    return [frame_index for frame_index in inner if frame_index >= first_sighting]


def _all_frames(truth: ObjectMasks) -> list[int] | OmissionReason:
    return sorted(truth) if _visible_frames(truth, truth) else OmissionReason.NEVER_VISIBLE


def _visible_frames(masks: ObjectMasks, frames: Iterable[int]) -> list[int]:
    return [i for i in frames if i in masks and rle.area(masks[i].counts) > 0]


def _score_object(
    video_id: str, object_id: int, truth: ObjectMasks, predicted: ObjectMasks, frames: list[int]
) -> ObjectScore:
    pairs = []
    for frame_index in frames:
        where = f"{video_id}, object {object_id}, frame {frame_index}"
        mask = truth[frame_index]
        # A missing prediction is an empty mask.
        other = predicted.get(frame_index) or Rle.empty(mask.height, mask.width)
        pairs.append(_score_frame(mask, other, where))
    return ObjectScore(
        video_id=video_id,
        object_id=object_id,
        frames=len(frames),
        frames_unpredicted=sum(frame_index not in predicted for frame_index in frames),
        j=Statistics.over_frames([pair.j for pair in pairs]),
        f=Statistics.over_frames([pair.f for pair in pairs]),
    )


def _score_frame(truth: Rle, predicted: Rle, where: str) -> PairScore:
    if predicted == truth:
        return PairScore(1.0, 1.0)  # the usual case where a correction is compared with its base
    if (predicted.height, predicted.width) != (truth.height, truth.width):
        raise EvaluationError(
            f"{where}: predicted mask of {predicted.height}×{predicted.width} (rows × columns); "
            f"wanted the truth's {truth.height}×{truth.width}"
        )
    try:
        masks = [rle.decode(mask.counts, mask.height, mask.width) for mask in (predicted, truth)]
    except rle.RleError as error:
        raise EvaluationError(f"{where}: {error}") from error
    return score_pair(*masks)
