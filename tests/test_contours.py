"""A mask becomes one closed path, and the filled path is the mask again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import disk, sav_objects

from workflows.contours import corners, fill, single_path, trace

Mask = npt.NDArray[np.bool_]


def mask_of(*lines: str) -> Mask:
    return np.array([[letter == "#" for letter in line] for line in lines])


def parts_of(mask: Mask) -> int:
    """How many pieces that share neither side nor corner: flooding, the slow way."""
    left, parts = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        parts += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
    return parts


def refilled(mask: Mask) -> Mask:
    return fill(corners(single_path(mask)), *mask.shape)


@pytest.mark.parametrize(
    "lines",
    [
        ("#",),
        ("##",),
        ("#", "#", "#"),
        ("####", "####"),
        ("#.", ".#"),
        (".#.", "#.#", ".#."),
        ("#####", "#...#", "#####"),
        ("######", "#.##.#", "######"),
        ("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),
        ("#...", "####", "...#"),
    ],
)
def test_the_filled_path_of_one_part_is_the_mask(lines: tuple[str, ...]) -> None:
    mask = mask_of(*lines)
    if parts_of(mask) == 1:
        assert (refilled(mask) == mask).all()
    else:  # the ring within a ring
        assert refilled(mask)[mask].all() and (refilled(mask) & ~mask).sum() == 1


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_a_random_mask_loses_nothing_and_gains_only_lines_between_its_parts(
    height: int, width: int, seed: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask[height // 2, width // 2] = True
    again = refilled(mask)
    assert again[mask].all()
    if parts_of(mask) == 1:
        assert (again == mask).all()
    else:
        added = int((again & ~mask).sum())
        assert 0 < added < (parts_of(mask) - 1) * max(height, width)


def test_borders_are_told_apart() -> None:
    loops = trace(disk(20, 15, 9) & ~disk(20, 15, 3) | disk(50, 15, 2))
    assert sorted((loop.is_hole) for loop in loops) == [False, False, True]


def test_steps_go_from_pixel_to_neighbour() -> None:
    (loop,) = trace(disk(20, 15, 9))
    steps = np.abs(np.roll(loop.path, -1, axis=0) - loop.path).max(axis=1)
    assert set(steps.tolist()) == {1}
    assert len(corners(loop.path)) < len(loop.path)


def test_an_empty_mask_has_no_outline() -> None:
    with pytest.raises(ValueError, match="empty"):
        single_path(np.zeros((3, 3), bool))
    assert trace(np.zeros((3, 3), bool)) == []


def test_real_masks_lose_nothing(real_data: Callable[[str], Path]) -> None:
    objects = sav_objects(real_data("sav_000001_manual.json"))
    for frames in objects.values():
        for frame in (0, 240, 480):
            if frames[frame].any():
                again = refilled(frames[frame])
                assert again[frames[frame]].all()
                assert (again & ~frames[frame]).sum() < 0.02 * frames[frame].sum() + 200
