"""Batches: prompts lie on their objects, a step's batch is always the same, absences are found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workflows.train_batches import BatchShape, box_of, make_batch
from workflows.train_clips import DrawnClips
from workflows.train_scenes import FIRST_STILL, Clip
from workflows.train_unroll import BOX, CLICK, MASK

SIZE = 64
SHAPE = BatchShape(2, 3, 3, (0.4, 0.3, 0.3), 16, SIZE)


@pytest.fixture(scope="module")
def source() -> DrawnClips:
    torch.set_num_threads(1)
    return DrawnClips(seed=0, count=12, num_frames=4, size=SIZE)


def test_a_steps_batch_is_always_the_same_and_no_two_steps_share_one(source: DrawnClips) -> None:
    first, again, other = (make_batch(source, SHAPE, 0, step) for step in (3, 3, 4))
    for name in ("pixels", "clip", "target", "area_px", "kind", "click", "box", "mask"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.frame_indices == again.frame_indices
    assert not torch.equal(first.pixels, other.pixels)


def test_prompts_lie_on_their_objects(source: DrawnClips) -> None:
    shape = replace(SHAPE, box_jitter=0.0)
    for step in range(6):
        batch = make_batch(source, shape, 1, step)
        for n in range(len(batch.clip)):
            x, y = batch.click[n].long().tolist()
            assert batch.mask[n, y, x]
            x0, y0, x1, y1 = batch.box[n].long().tolist()
            assert batch.mask[n].sum() == batch.mask[n, y0:y1, x0:x1].sum() >= 16
            rows, columns = batch.mask[n].any(1).sum(), batch.mask[n].any(0).sum()
            assert rows <= y1 - y0 and columns <= x1 - x0
        assert torch.equal(batch.area_px[:, 0], batch.mask.sum((1, 2)))
        covered = batch.target.sum((2, 3)) * shape.cell_px**2
        assert torch.allclose(covered, batch.area_px.float())


def test_kinds_come_as_often_as_they_should(source: DrawnClips) -> None:
    kinds = torch.cat([make_batch(source, SHAPE, 2, step).kind for step in range(20)])
    shares = [(kinds == kind).float().mean().item() for kind in (CLICK, BOX, MASK)]
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.15)


def test_still_things_are_left_out_and_objects_prompted_several_times() -> None:
    class OneOfEach:
        name = "one-of-each"

        def __len__(self) -> int:
            return 1

        def clip(self, index: int) -> Clip:
            labels = np.zeros((1, SIZE, SIZE), np.uint8)
            labels[:, 4:24, 4:24] = 1
            labels[:, 40:60, 30:60] = FIRST_STILL
            return Clip(np.zeros((1, SIZE, SIZE, 3), np.uint8), labels, (0.0,))

    shape = replace(SHAPE, clips=1, frames=1, objects=8, vary=False)
    areas = make_batch(OneOfEach(), shape, 0, 0).area_px[:, 0].tolist()
    assert sorted(areas) == [400, 600]
    batch = make_batch(OneOfEach(), replace(shape, still=0.0, prompts_each=3), 0, 0)
    assert batch.area_px[:, 0].tolist() == [400, 400, 400]
    assert len({tuple(click.tolist()) for click in batch.click}) == 3
    many = [make_batch(OneOfEach(), replace(shape, still=0.5), 0, step) for step in range(60)]
    assert 0.3 < sum(len(batch.clip) == 2 for batch in many) / 60 < 0.7


def test_boxes_are_off_by_as_much_as_the_shape_says(source: DrawnClips) -> None:
    def widest_slip(jitter: float) -> float:
        slips = []
        for step in range(8):
            batch = make_batch(source, replace(SHAPE, box_jitter=jitter), 1, step)
            for box, mask in zip(batch.box, batch.mask, strict=True):
                exact = torch.from_numpy(box_of(mask.numpy()))
                sides = (exact[2:] - exact[:2]).repeat(2)
                slips.append(float(((box - exact).abs() / sides).max()))
        return max(slips)

    assert widest_slip(0.0) == 0
    assert 0.02 < widest_slip(0.03) <= 0.06 + 1e-5
    assert 0.1 < widest_slip(0.1) <= 0.2 + 1e-5


class Leaving:
    """Clip 5 holds an object that leaves; in the others it stays."""

    name = "leaving"

    def __len__(self) -> int:
        return 6

    def clip(self, index: int) -> Clip:
        labels = np.zeros((3, SIZE, SIZE), np.uint8)
        labels[:, 20:40, 20:40] = 1
        if index == 5:
            labels[2] = 0
            labels[0, 50:60, 50:60] = 2  # in sight on the first frame, and the last when reversed
            labels[2, 50:60, 50:60] = 2
        return Clip(np.zeros((3, SIZE, SIZE, 3), np.uint8), labels, (0.0, 1.0, 2.0))


def test_clips_with_absences_are_looked_for() -> None:
    shape = replace(SHAPE, vary=False)
    shares = []
    for absence in (0.0, 1.0):
        batches = [make_batch(Leaving(), replace(shape, absence=absence), 0, s) for s in range(30)]
        absent = [
            not batch.area_px[batch.clip == clip].all() for batch in batches for clip in range(2)
        ]
        shares.append(sum(absent) / len(absent))
    assert shares[0] < 0.35 < 0.6 < shares[1]


def test_a_clip_that_begins_empty_is_passed_over() -> None:
    class EmptyAtFirst(Leaving):
        def clip(self, index: int) -> Clip:
            clip = super().clip(0)
            return clip if index == 3 else Clip(clip.frames, clip.labels * 0, clip.times)

    batch = make_batch(EmptyAtFirst(), SHAPE, 0, 0)
    assert batch.pixels.shape[0] == SHAPE.clips and len(batch.clip) == SHAPE.clips
