"""The three protocols, against literal second versions and against numbers worked out by hand."""

from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
from davis_reference import LabelMaps, reference_davis, reference_sav, reference_statistics

from sam2model import rle
from workflows.evaluate import (
    EvaluationError,
    MissingVideos,
    Protocol,
    evaluate,
    frames_to_score,
    score_video,
)
from workflows.evaluation_scores import ObjectScore, OmissionReason, Statistics
from workflows.mask_sources import Rle, VideoMasks

SHAPE = (480, 854)


def encode(mask: np.ndarray) -> Rle:
    return Rle(rle.encode_mask(mask), *mask.shape)


def square(left: int | None) -> Rle:
    """100 px a side at y 200; None: no square."""
    mask = np.zeros(SHAPE, dtype=bool)
    if left is not None:
        mask[200:300, left : left + 100] = True
    return encode(mask)


def track(*lefts: int | None, first_frame: int = 0) -> dict[int, Rle]:
    return {first_frame + i: square(left) for i, left in enumerate(lefts)}


def masks_of(labels: LabelMaps) -> VideoMasks:
    """What a folder of label maps gives: a mask, empty or not, of each id on each frame."""
    ids = {*range(1, int(labels[0].max()) + 1), *labels[labels > 0].tolist()}
    return {
        object_id: {index: encode(frame == object_id) for index, frame in enumerate(labels)}
        for object_id in sorted(ids)
    }


def random_video(rng: np.random.Generator) -> tuple[LabelMaps, LabelMaps]:
    """(predicted, truth) of up to four moving boxes that come, go, and are tracked with errors."""
    num_frames, height, width = int(rng.integers(4, 24)), 48, 160
    truth = np.zeros((num_frames, height, width), dtype=np.uint8)
    predicted = np.zeros_like(truth)
    for object_id in rng.permutation([1, 2, 3, 4])[: rng.integers(1, 5)]:
        visible = rng.random(num_frames) < 0.8
        found = visible ^ (rng.random(num_frames) < 0.15)
        if rng.random() < 0.3:
            visible[: num_frames // 3] = False
        top, left = rng.integers(0, height - 12), rng.integers(0, width - 40)
        for index in range(num_frames):
            down, right = rng.integers(-4, 5, size=2)
            if visible[index]:
                truth[index, top : top + 12, left + index : left + index + 14] = object_id
            if found[index]:
                y, x = max(top + down, 0), max(left + index + right, 0)
                predicted[index, y : y + 12, x : x + 14] = object_id
    return predicted, truth


def numbers(scores: list[ObjectScore]) -> dict[int, list[float]]:
    return {
        score.object_id: [
            value for part in (score.j, score.f) for value in (part.mean, part.recall, part.decay)
        ]
        for score in scores
    }


@pytest.mark.parametrize(
    ("protocol", "reference"),
    [(Protocol.DAVIS, reference_davis), (Protocol.SAV, reference_sav)],
)
def test_a_protocol_equals_its_literal_version_on_random_videos(
    protocol: Protocol,
    reference: Callable[[LabelMaps, LabelMaps], dict[int, list[float]]],
) -> None:
    rng = np.random.default_rng(11)
    num_objects = 0
    for _ in range(40):
        predicted, truth = random_video(rng)
        scores, _ = score_video("v", masks_of(truth), masks_of(predicted), protocol)
        expected = reference(predicted, truth)
        assert numbers(scores).keys() == expected.keys()
        for object_id, values in numbers(scores).items():
            assert values == pytest.approx(expected[object_id], abs=1e-9), f"object {object_id}"
        num_objects += len(scores)
    assert num_objects > 40


def only_score(truth: VideoMasks, predicted: VideoMasks, protocol: Protocol) -> ObjectScore:
    scores, _ = score_video("v", truth, predicted, protocol)
    (score,) = scores
    return score


# 20 px aside scores J 2/3 and F 0.485; the object appears on frame 4 of 8.
LATE = {1: track(None, None, None, None, 300, 300, 300, 300)}
LATE_FOUND = {1: track(None, None, None, None, 320, 320, 320, 320)}
LATE_TOO_EARLY = {1: track(None, None, 320, None, 320, 320, 320, 320)}


def test_all_frames_counts_the_frames_before_a_late_object_as_right() -> None:
    score = only_score(LATE, LATE_FOUND, Protocol.ALL_FRAMES)
    assert score.frames == 8
    assert score.j.mean == pytest.approx((4 + 4 * 2 / 3) / 8)
    assert score.f.mean == pytest.approx((4 + 4 * 0.485) / 8)


def test_sav_counts_a_late_object_from_its_first_sighting() -> None:
    score = only_score(LATE, LATE_FOUND, Protocol.SAV)
    assert score.frames == 3  # frame 7 is the last, and dropped
    assert score.j.mean == pytest.approx(2 / 3)
    assert score.f.mean == pytest.approx(0.485)


def test_sav_is_raised_by_an_early_false_positive() -> None:
    score = only_score(LATE, LATE_TOO_EARLY, Protocol.SAV)
    assert score.frames == 5  # from frame 2: one false positive, one rightly empty frame, three
    assert score.f.mean == pytest.approx((0 + 1 + 3 * 0.485) / 5)
    assert score.f.mean > only_score(LATE, LATE_FOUND, Protocol.SAV).f.mean


def test_davis_leaves_a_late_object_out_and_says_so() -> None:
    both = {1: track(300, 300, 300, 300), 2: track(None, 300, 300, 300)}
    scores, omissions = score_video("v", both, both, Protocol.DAVIS)
    assert [score.object_id for score in scores] == [1]
    assert [(o.object_id, o.reason) for o in omissions] == [(2, OmissionReason.NOT_ON_FIRST_FRAME)]


def test_davis_drops_the_first_and_last_frame_of_the_video_not_of_the_object() -> None:
    truth = {1: track(300, 300, 300, 300, 300), 0: track(300, 300, 300, first_frame=1)}
    assert frames_to_score(truth, {}, Protocol.DAVIS) == {1: [1, 2, 3], 0: [1, 2, 3]}
    assert frames_to_score(truth, {}, Protocol.SAV) == {1: [1, 2, 3], 0: [2]}
    assert frames_to_score(truth, {}, Protocol.ALL_FRAMES) == {1: [0, 1, 2, 3, 4], 0: [1, 2, 3]}


@pytest.mark.parametrize("protocol", [Protocol.SAV, Protocol.ALL_FRAMES])
def test_an_object_that_the_truth_never_shows_has_no_score(protocol: Protocol) -> None:
    scores, omissions = score_video("v", {1: track(None, None, None)}, {}, protocol)
    assert scores == []
    assert [o.reason for o in omissions] == [OmissionReason.NEVER_VISIBLE]


@pytest.mark.parametrize("protocol", [Protocol.SAV, Protocol.DAVIS])
def test_a_video_of_two_frames_has_no_frame_to_score(protocol: Protocol) -> None:
    scores, omissions = score_video("v", {1: track(300, 300)}, {1: track(300, 300)}, protocol)
    assert scores == []
    assert [o.reason for o in omissions] == [OmissionReason.NO_SCORED_FRAME]


@pytest.mark.parametrize("protocol", Protocol)
def test_a_video_without_objects_is_listed(protocol: Protocol) -> None:
    scores, omissions = score_video("v", {}, {}, protocol)
    assert scores == []
    assert [(o.object_id, o.reason) for o in omissions] == [(None, OmissionReason.NO_OBJECT)]


def test_an_object_that_only_the_prediction_has_is_listed() -> None:
    masks = track(300, 300, 300)
    scores, omissions = score_video("v", {1: masks}, {1: masks, 9: masks}, Protocol.DAVIS)
    assert [score.object_id for score in scores] == [1]
    assert [(o.object_id, o.reason) for o in omissions] == [(9, OmissionReason.NOT_IN_TRUTH)]


def test_missing_predictions_count_as_empty_masks_and_are_counted() -> None:
    truth = {1: track(300, 300, None, 300)}
    score = only_score(truth, {1: {0: square(300)}}, Protocol.ALL_FRAMES)
    assert score.frames_unpredicted == 3
    assert score.j.mean == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert only_score(truth, {}, Protocol.ALL_FRAMES).frames_unpredicted == 4


def test_decay_is_the_first_quarter_less_the_last() -> None:
    values = [1.0, 1.0, 0.8, 0.6, 0.6, 0.4, 0.2, 0.2]
    # Edges 1, 3, 5, 6, 8: the quarters share their edge frames.
    assert Statistics.over_frames(values).decay == pytest.approx((1 + 1 + 0.8) / 3 - 0.8 / 3)
    assert Statistics.over_frames([0.7]).decay == 0


def test_decay_looks_at_the_last_quarter_of_long_videos_too() -> None:
    values = [1.0] * 1000 + [0.0] * 1000  # 8-bit edges would wrap round at 256
    assert Statistics.over_frames(values).decay == 1
    for count in chain(range(1, 40), (255, 256, 257, 1023)):
        rising = [frame / count for frame in range(count)]
        ours = Statistics.over_frames(rising)
        assert (ours.mean, ours.recall, ours.decay) == pytest.approx(reference_statistics(rising))


def test_recall_needs_more_than_one_half() -> None:
    assert Statistics.over_frames([0.5, 0.51, 1.0, 0.0]).recall == 0.5


def test_the_dataset_is_the_mean_over_objects_not_over_videos() -> None:
    right, wrong = {0: square(300)}, {0: square(700)}
    truth = {"a": {1: right, 2: right, 3: right}, "b": {1: right}}
    predicted = {"a": {1: right, 2: right, 3: right}, "b": {1: wrong}}
    evaluation = evaluate(truth, predicted, Protocol.ALL_FRAMES)
    assert evaluation.overall is not None
    assert evaluation.overall.j_and_f == pytest.approx(3 / 4)
    assert {name: score.j_and_f for name, score in evaluation.by_video().items()} == {
        "a": 1.0,
        "b": 0.0,
    }


def test_j_and_f_is_the_mean_of_the_two() -> None:
    predicted, truth = {1: track(320, 320, 320)}, {1: track(300, 300, 300)}
    evaluation = evaluate({"v": truth}, {"v": predicted}, Protocol.DAVIS)
    assert evaluation.overall is not None
    assert evaluation.overall.j_and_f == pytest.approx((2 / 3 + 0.485) / 2)
    assert evaluation.objects[0].j_and_f == evaluation.overall.j_and_f


def test_tables_and_summary_tell_the_same_numbers() -> None:
    truth = {"v": {1: track(300, 300, 300, 300), 2: track(300, 300, 300, 300)}}
    predicted = {"v": {1: track(300, 300, 320, 320), 5: track(300)}}
    evaluation = evaluate(truth, predicted, Protocol.DAVIS)
    objects = evaluation.objects_table().to_pylist()
    assert [(row["video_id"], row["object_id"], row["frames"]) for row in objects] == [
        ("v", 1, 2),
        ("v", 2, 2),
    ]
    assert [row["frames_unpredicted"] for row in objects] == [0, 2]
    assert objects[0]["j_mean"] == pytest.approx((1 + 2 / 3) / 2)
    (video,) = evaluation.videos_table().to_pylist()
    summary = evaluation.summary()
    for name in ("j_and_f", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay"):
        assert (
            video[name] == summary[name] == pytest.approx((objects[0][name] + objects[1][name]) / 2)
        )
    assert (video["objects"], video["frames"]) == (summary["objects"], summary["frames"]) == (2, 4)
    assert (summary["protocol"], summary["videos"]) == ("davis", 1)
    assert summary["frames_unpredicted"] == 2
    assert summary["omissions"] == {"predicted, but unknown to the truth": 1}
    assert evaluation.omissions_table().to_pylist() == [
        {"video_id": "v", "object_id": 5, "reason": "predicted, but unknown to the truth"}
    ]


def test_a_dataset_without_scores_has_null_averages() -> None:
    evaluation = evaluate({"v": {}}, {"v": {}}, Protocol.DAVIS)
    assert evaluation.overall is None
    assert evaluation.summary()["j_and_f"] is None
    assert evaluation.objects_table().num_rows == evaluation.videos_table().num_rows == 0
    assert evaluation.omissions_table().to_pylist()[0]["object_id"] is None


TWO_VIDEOS = {"a": {1: track(300, 300, 300)}, "b": {1: track(300, 300, 300)}}
FIRST_VIDEO = {"a": {1: track(300, 300, 300)}}


def test_videos_without_prediction_are_refused_by_name() -> None:
    with pytest.raises(EvaluationError, match="1 of 2 videos have no prediction, the first is b"):
        evaluate(TWO_VIDEOS, FIRST_VIDEO, Protocol.DAVIS)


def test_videos_without_prediction_can_be_left_out_by_name() -> None:
    evaluation = evaluate(TWO_VIDEOS, FIRST_VIDEO, Protocol.DAVIS, MissingVideos.SKIP)
    assert evaluation.overall is not None
    assert evaluation.overall.j_and_f == 1
    assert [(o.video_id, o.object_id, o.reason) for o in evaluation.omissions] == [
        ("b", None, OmissionReason.NOT_PREDICTED)
    ]


def test_videos_without_prediction_can_count_as_empty() -> None:
    evaluation = evaluate(TWO_VIDEOS, FIRST_VIDEO, Protocol.DAVIS, MissingVideos.EMPTY)
    assert evaluation.overall is not None
    assert evaluation.overall.j_and_f == 0.5
    assert evaluation.omissions == ()


def test_masks_of_two_sizes_are_refused_with_their_place() -> None:
    truth = {"v": {3: {5: square(300)}}}
    small = {"v": {3: {5: Rle.empty(240, 427)}}}
    wanted = "v, object 3, frame 5: predicted mask of 240×427 .*; wanted the truth's 480×854"
    with pytest.raises(EvaluationError, match=wanted):
        evaluate(truth, small, Protocol.ALL_FRAMES)


def test_damaged_run_lengths_are_refused_with_their_place() -> None:
    truth = {"v": {3: {5: square(300)}}}
    short = {"v": {3: {5: Rle("06", *SHAPE)}}}
    with pytest.raises(EvaluationError, match="v, object 3, frame 5: .*wanted 480×854"):
        evaluate(truth, short, Protocol.ALL_FRAMES)
    cut_off = {"v": {3: {5: Rle(square(300).counts + "P", *SHAPE)}}}
    with pytest.raises(EvaluationError, match="^v"):
        evaluate(cut_off, truth, Protocol.ALL_FRAMES)
