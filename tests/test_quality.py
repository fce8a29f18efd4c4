"""Doubt finds the tracks that fail, and flags the frame where: on drawn videos nobody fitted to."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from fit_quality import (
    FRAME_SEEDS,
    HELD_OUT_SEEDS,
    TRACK_SEEDS,
    calibration_error,
    reliability,
)
from modelled_videos import SEEDS as SEEDS_OF_A_MODEL
from modelled_videos import judged, modelled_videos
from planted_failures import DrawnVideo, drawn_videos

from sam2model.rle import encode_masks
from workflows.mask_objects import write_mask_object
from workflows.quality import FlagKind, Quality, assess, with_quality
from workflows.query import Dataset
from workflows.refine_types import QueueFilter, QueueItem
from workflows.results import DatasetWriter
from workflows.review_queue import review_queue
from workflows.rows import MASKS_SCHEMA, Review, Source, Status, VideoOutcome
from workflows.storage import Storage
from workflows.train_validation import auroc
from workflows.video_masks import tracks_of

SEEDS = HELD_OUT_SEEDS[:200]
HEIGHT, WIDTH, FRAMES = 60, 100, 40


@pytest.fixture(scope="module")
def drawn() -> list[DrawnVideo]:
    assert not set(SEEDS) & {*FRAME_SEEDS, *TRACK_SEEDS}
    return list(drawn_videos(SEEDS, share=0.1))


@pytest.fixture(scope="module")
def dataset(drawn: list[DrawnVideo], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The drawn videos as a bulk job would have labelled them."""
    root = str(tmp_path_factory.mktemp("drawn") / "labels")
    commit(root, [(video.video_id, video.masks) for video in drawn])
    return Dataset(root)


def commit(root: str, videos: list[tuple[str, pa.Table]]) -> None:
    outcomes = []
    for number, (video_id, masks) in enumerate(videos):
        objects = sorted(set(masks["object_id"].to_pylist()))
        prompts: Any = [{"object_id": o, "frame_index": 0, "category": "thing"} for o in objects]
        tracks = tracks_of(video_id, masks, prompts, {"source": Source.BULK})
        outcome = VideoOutcome(
            video_id=video_id,
            video_uri=f"{video_id}.mp4",
            fingerprint=f"{number:032x}",
            status=Status.OK,
            run_id="r",
            finished_at=datetime.now(UTC),
            tracks=with_quality(tracks, masks),
        )
        outcomes.append(write_mask_object(Storage(), root, outcome, masks))
    DatasetWriter(Storage(), root).commit(outcomes)


def test_the_queue_begins_with_the_tracks_that_fail(
    dataset: Dataset, drawn: list[DrawnVideo]
) -> None:
    num_tracks = dataset.tracks().num_rows
    first = review_queue(dataset, QueueFilter(limit=round(num_tracks / 10)))
    failing = {(v.video_id, o): f for v in drawn for o, f in v.failures.items()}
    assert 30 < len(failing) < num_tracks / 10
    found = {(item.video_id, item.object_id): item for item in first}
    caught = [key for key in failing if key in found]
    assert len(caught) / len(failing) >= 0.8
    near = [abs(found[key].frame_index - failing[key].onset) <= 5 for key in caught]
    assert np.mean(near) >= 0.9, "the frame to click on is where it went wrong"


def test_doubt_is_the_chance_of_a_failure(dataset: Dataset, drawn: list[DrawnVideo]) -> None:
    failing = {(v.video_id, o) for v in drawn for o in v.failures}
    tracks = dataset.tracks().select(["video_id", "object_id", "doubt"]).to_pylist()
    doubt = np.array([track["doubt"] for track in tracks])
    failed = np.array([(t["video_id"], t["object_id"]) in failing for t in tracks])
    assert (doubt >= 0).all() and (doubt <= 1).all()
    assert calibration_error(reliability(failed, doubt)) < 0.05
    assert abs(doubt.mean() - failed.mean()) < 0.03


@pytest.mark.slow
def test_tracks_that_a_trained_model_loses_come_earlier_than_its_others(tmp_path: Path) -> None:
    """Its own scores and failures: by how little, docs/quality.md says."""
    doubt, fails = judged(modelled_videos(SEEDS_OF_A_MODEL[:24], tmp_path))
    assert fails.sum() >= 5
    assert auroc(doubt.tolist(), fails.tolist()) > 0.5


# Each kind of failure by itself.


def square(x: float, y: float = 20, side: int = 16) -> npt.NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[int(y) : int(y) + side, int(x) : int(x) + side] = True
    return mask


def rows(object_id: int, masks: list[npt.NDArray[np.bool_]], **scores: Any) -> pa.Table:
    """scores: a number, or one for each frame."""
    strings = encode_masks(np.stack(masks))
    table = []
    for t, mask in enumerate(masks):
        spots = np.argwhere(mask)
        low, high = (spots.min(0), spots.max(0) + 1) if len(spots) else (None, None)
        box = None
        if low is not None and high is not None:
            box = dict(zip(("y0", "x0", "y1", "x1"), map(float, [*low, *high]), strict=True))
        given = {"object_score": 7.0, "iou_pred": 0.92, "stability": 0.96, **scores}
        values = {k: v[t] if isinstance(v, list) else v for k, v in given.items()}
        table.append(
            {
                "video_id": "v",
                "object_id": object_id,
                "frame_index": t,
                "counts": strings[t],
                "height": HEIGHT,
                "width": WIDTH,
                "area_px": len(spots),
                "box": box,
                "is_prompt": t == 0,
                **values,
            }
        )
    return pa.Table.from_pylist(table, schema=MASKS_SCHEMA)


def steady() -> list[npt.NDArray[np.bool_]]:
    return [square(20 + t) for t in range(FRAMES)]


def worst(quality: Quality) -> tuple[int, str]:
    flag = max(quality.flags, key=lambda f: f["doubt"])
    return flag["frame_index"], flag["kind"]


def test_a_steady_track_has_no_flag_and_little_doubt() -> None:
    (quality,) = assess(rows(1, steady())).values()
    assert quality.flags == () and quality.doubt < 0.05


def test_a_mask_that_is_gone_from_one_frame_to_the_next_is_flagged_as_lost() -> None:
    masks = steady()
    masks[25:] = [np.zeros((HEIGHT, WIDTH), np.bool_)] * 15
    (quality,) = assess(rows(1, masks, object_score=[7.0] * 25 + [-5.0] * 15)).values()
    assert worst(quality) == (25, FlagKind.LOST)
    assert quality.doubt > 0.5


def test_an_object_that_leaves_the_image_is_not_lost() -> None:
    masks = [square(60 + 3 * t) for t in range(FRAMES)]
    (quality,) = assess(rows(1, masks)).values()
    assert FlagKind.LOST not in {flag["kind"] for flag in quality.flags}


def test_two_masks_on_one_object_are_flagged_on_the_one_that_moved() -> None:
    other = [square(20 + t, 40) for t in range(FRAMES)]
    masks = steady()
    masks[18:] = other[18:]
    found = assess(pa.concat_tables([rows(1, masks), rows(2, other)]))
    assert worst(found[1]) == (18, FlagKind.OVERLAP)
    assert found[1].doubt > found[2].doubt


def test_low_scores_are_flagged_by_their_kind() -> None:
    dip = [0.92] * 20 + [0.4] * 3 + [0.92] * 17
    (quality,) = assess(rows(1, steady(), iou_pred=dip)).values()
    assert worst(quality) == (20, FlagKind.LOW_IOU)


def test_tracking_backwards_to_another_mask_is_flagged() -> None:
    quality = assess(rows(1, steady()), {(1, 30): 0.9})[1]
    assert worst(quality) == (30, FlagKind.BACKWARD)


def test_a_prompted_frame_is_never_flagged_and_nothing_is_compared_across_it() -> None:
    masks = [square(20), *[square(70, 30, 20)] * (FRAMES - 1)]
    table = rows(1, masks)
    assert assess(table)[1].doubt > 0
    prompted = [True, True] + [False] * (FRAMES - 2)
    place = table.schema.get_field_index("is_prompt")
    vouched = table.set_column(place, "is_prompt", pa.array(prompted))
    assert assess(vouched)[1].flags == ()


def test_frames_before_the_first_prompt_are_read_backwards() -> None:
    masks = steady()
    masks[:10] = [np.zeros((HEIGHT, WIDTH), np.bool_)] * 10
    table = rows(1, masks)
    place = table.schema.get_field_index("is_prompt")
    prompted = table.set_column(place, "is_prompt", pa.array([t == 20 for t in range(FRAMES)]))
    assert worst(assess(prompted)[1]) == (9, FlagKind.LOST), "the first one without a mask"


def test_masks_without_scores_can_be_judged_too() -> None:
    table = rows(1, steady(), object_score=None, iou_pred=None, stability=None)
    assert assess(table)[1].doubt < 0.05
    assert assess(MASKS_SCHEMA.empty_table()) == {}


def test_objects_that_did_not_change_are_not_judged_again_and_count_for_those_that_did(
    drawn: list[DrawnVideo],
) -> None:
    for video in drawn[:10]:
        everything = assess(video.masks)
        for object_id, quality in everything.items():
            assert assess(video.masks, object_ids=[object_id]) == {object_id: quality}
    masks = [square(20 + t) for t in range(FRAMES)]
    both = pa.concat_tables([rows(1, masks), rows(2, masks)])
    assert assess(both, object_ids=[1])[1].doubt > assess(rows(1, masks))[1].doubt


# The queue.


def items(dataset: Dataset, **wanted: Any) -> list[QueueItem]:
    return review_queue(dataset, QueueFilter(**wanted))


def test_the_queue_is_filtered_and_paged(tmp_path: Path) -> None:
    lost = [square(20 + t, 10) for t in range(FRAMES)]
    lost[25:] = [np.zeros((HEIGHT, WIDTH), np.bool_)] * 15
    root = str(tmp_path / "labels")
    video = pa.concat_tables([rows(1, [square(20 + t, 40) for t in range(FRAMES)]), rows(2, lost)])
    commit(root, [("v", video)])
    dataset = Dataset(root)
    both = items(dataset)
    assert [(i.object_id, i.frame_index, i.kind) for i in both] == [
        (2, 25, FlagKind.LOST),
        (1, 19, None),
    ]
    assert items(dataset, limit=1) == both[:1]
    assert items(dataset, offset=1) == both[1:]
    assert items(dataset, kinds=("lost",)) == both[:1]
    assert items(dataset, kinds=("overlap",)) == []
    assert items(dataset, min_doubt=0.5) == both[:1]
    assert items(dataset, categories=("thing",)) == both
    assert items(dataset, categories=("other",)) == items(dataset, video_ids=("w",)) == []
    assert items(dataset, sources=(Source.REFINE,)) == []
    DatasetWriter(Storage(), root).review("v", 1, Review.REJECTED, "ann", [2])
    dataset.refresh()
    assert [i.object_id for i in items(dataset)] == [1]
    assert [i.object_id for i in items(dataset, reviews=(Review.REJECTED,))] == [2]
