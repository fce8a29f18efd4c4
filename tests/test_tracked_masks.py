"""Logits to run lengths and numbers, by a processor and as a GPU would do it."""

import numpy as np
import pytest
import torch

from sam2model.rle import DEFAULT_CAPACITY, decode
from sam2model.track_step import StepOutput
from sam2model.tracked_masks import PendingMasks


def output(logits: torch.Tensor) -> StepOutput:
    count = len(logits)
    scores = torch.linspace(-1, 3, count)
    return StepOutput(logits, torch.linspace(0, 1, count), scores, torch.zeros(count, 8))


def as_on_a_gpu(pending: PendingMasks) -> PendingMasks:
    """The same masks begun ahead, as where work is launched and finished apart."""
    pending._chunks = [pending._launch(part) for part in pending._parts]
    pending._parts = []
    return pending


def blobs(count: int, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((count, side, side), generator=generator)
    logits[0] = -5.0  # an object that is not there
    return logits


@pytest.mark.parametrize("size", [(40, 60), (33, 17)])
def test_both_ways_tell_the_same_and_it_is_what_the_logits_say(size: tuple[int, int]) -> None:
    of = output(blobs(5))
    ids, prompted = [9, 2, 7, 1, 4], [True, False, False, True, False]
    here = PendingMasks(of, ids, prompted, *size).finish()
    there = as_on_a_gpu(PendingMasks(of, ids, prompted, *size)).finish()

    assert here == there
    assert [(m.object_id, m.is_prompt) for m in here] == list(zip(ids, prompted, strict=True))
    assert here[0].area_px == 0 and here[0].box_xyxy_px == (0, 0, 0, 0)
    for row, mask in enumerate(here):
        pixels = decode(mask.counts, *size)
        assert mask.area_px == pixels.sum()
        assert mask.object_score == pytest.approx(float(of.object_score[row]))
        assert mask.iou_pred == pytest.approx(float(of.iou[row]))
        if mask.area_px:
            rows, columns = np.nonzero(pixels)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert mask.box_xyxy_px == box


def test_a_frame_too_large_for_all_masks_at_once_is_done_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = (40, 60)
    monkeypatch.setattr("sam2model.tracked_masks.MASK_CHUNK_PX", 2 * 40 * 60 + 1)
    of = output(blobs(5))
    pending = PendingMasks(of, range(5), [False] * 5, *size)
    assert len(pending._parts) == 3

    masks = pending.finish()

    assert [m.object_id for m in masks] == [0, 1, 2, 3, 4]
    assert len({m.counts for m in masks}) == 5


def test_a_mask_of_more_runs_than_were_made_room_for_is_made_again() -> None:
    stripes = torch.full((2, 64, 64), -1.0)
    stripes[1, ::2] = 1.0
    of = output(stripes)
    size = (64, 64 * 8)
    here = PendingMasks(of, [1, 2], [False, False], *size).finish()
    there = as_on_a_gpu(PendingMasks(of, [1, 2], [False, False], *size)).finish()

    assert here == there
    runs = np.flatnonzero(np.diff(decode(here[1].counts, *size).T.ravel())).size
    assert runs > DEFAULT_CAPACITY
