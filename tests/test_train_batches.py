"""Batches: prompts lie on their objects, a step's batch is always the same, absences are found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workflows.train_batches import BatchShape, make_batch
from workflows.train_clips import DrawnClips
from workflows.train_scenes import Clip
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
