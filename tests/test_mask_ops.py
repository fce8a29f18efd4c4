"""sam2model.mask_ops: clean-up against a flood fill, the rest against definitions."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sam2model import mask_ops


def component_areas(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The area of each set pixel's 8-connected component, by flood fill."""
    areas = np.zeros(mask.shape, dtype=np.int64)
    for start in zip(*np.nonzero(mask), strict=True):
        if areas[start]:
            continue
        found, waiting = {start}, [start]
        while waiting:
            y, x = waiting.pop()
            for near in product(range(y - 1, y + 2), range(x - 1, x + 2)):
                inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
                if inside and mask[near] and near not in found:
                    found.add(near)
                    waiting.append(near)
        for pixel in found:
            areas[pixel] = len(found)
    return areas


def assert_areas_are_exact(masks: npt.NDArray[np.bool_], max_area_px: int) -> None:
    wanted = [np.minimum(component_areas(mask), max_area_px + 1) for mask in masks]
    got = mask_ops.small_component_areas(torch.from_numpy(masks), max_area_px)
    assert got.dtype == torch.int32
    assert np.array_equal(got.numpy(), np.stack(wanted))


def turned(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask in its 4 rotations and their mirror images, so that labels flow every way."""
    square = np.zeros((max(mask.shape),) * 2, dtype=bool)
    square[: mask.shape[0], : mask.shape[1]] = mask
    rotations = [np.rot90(square, turns) for turns in range(4)]
    return np.stack([*rotations, *(rotation[::-1] for rotation in rotations)])


def walk(length: int, moves: list[tuple[int, int]], size: int) -> npt.NDArray[np.bool_]:
    """The first pixels of a path from the corner."""
    mask = np.zeros((size, size), dtype=bool)
    y = x = 0
    mask[y, x] = True
    for dy, dx in moves[: length - 1]:
        y, x = y + dy, x + dx
        mask[y, x] = True
    assert mask.sum() == length
    return mask


RIGHT, LEFT, DOWN, UP = (0, 1), (0, -1), (1, 0), (-1, 0)
SNAKE = ([RIGHT] * 12 + [DOWN] * 2 + [LEFT] * 12 + [DOWN] * 2) * 3
SPIRAL = [RIGHT] * 12 + [DOWN] * 12 + [LEFT] * 12 + [UP] * 10 + [RIGHT] * 10 + [DOWN] * 8
SPIRAL += [LEFT] * 8 + [UP] * 6 + [RIGHT] * 6 + [DOWN] * 4 + [LEFT] * 4 + [UP] * 2 + [RIGHT] * 2
DIAGONAL = [(1, 1)] * 12
ZIGZAG = [(1, 1), (-1, 1)] * 6


@pytest.mark.parametrize("max_area_px", [0, 1, 2, 5, 8, 13, 40])
def test_component_areas_equal_a_flood_fill_on_random_masks(max_area_px: int) -> None:
    rng = np.random.default_rng(max_area_px)
    for height, width in [(23, 31), (1, 40), (40, 1), (16, 16), (2, 2)]:
        densities = np.array([0.1, 0.25, 0.35, 0.4, 0.45, 0.6, 0.9])[:, None, None]
        assert_areas_are_exact(rng.random((7, height, width)) < densities, max_area_px)


@pytest.mark.parametrize(
    ("moves", "size"), [(SNAKE, 13), (SPIRAL, 13), (DIAGONAL, 13), (ZIGZAG, 13)]
)
def test_the_longest_thin_shapes_are_small_up_to_the_very_limit(
    moves: list[tuple[int, int]], size: int
) -> None:
    for length in {2, 7, 12, 13, len(moves) // 2, len(moves) + 1}:
        masks = turned(walk(min(length, len(moves) + 1), moves, size))
        for max_area_px in (length - 1, length, length + 1):
            assert_areas_are_exact(masks, max_area_px)


def test_no_piece_of_a_large_component_is_taken_for_a_small_one() -> None:
    for moves in (SNAKE, SPIRAL):
        masks = torch.from_numpy(turned(walk(len(moves) + 1, moves, 13)))
        for max_area_px in range(1, len(moves) + 1):
            areas = mask_ops.small_component_areas(masks, max_area_px)
            assert torch.equal(areas, masks.int() * (max_area_px + 1))


def test_full_and_empty_masks_have_no_small_components() -> None:
    masks = np.stack([np.ones((9, 7), dtype=bool), np.zeros((9, 7), dtype=bool)])
    assert_areas_are_exact(masks, 8)
    assert_areas_are_exact(masks, 63)
    assert_areas_are_exact(masks, 1000)
    assert mask_ops.small_component_areas(torch.zeros(0, 9, 7, dtype=torch.bool), 8).shape[0] == 0


def test_a_negative_area_is_refused() -> None:
    with pytest.raises(ValueError, match="max_area_px is -1"):
        mask_ops.fill_holes(torch.zeros(1, 4, 4), -1)


def ring(hole_px: int) -> Tensor:
    """Logits of 3 with a hole of -2 in the middle, on a background of -5; (1, 16, 16)."""
    logits = torch.full((1, 16, 16), -5.0)
    logits[:, 2:14, 2:14] = 3.0
    logits[:, 6, 4 : 4 + hole_px] = -2.0
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holes_up_to_the_area_become_just_foreground_and_nothing_else_changes(
    dtype: torch.dtype,
) -> None:
    logits = torch.cat([ring(7), ring(8), ring(9)]).to(dtype)
    filled = mask_ops.fill_holes(logits, 8)
    wanted = logits.clone()
    wanted[0, 6, 4:11] = 0.1
    wanted[1, 6, 4:12] = 0.1
    assert filled.dtype == dtype
    assert torch.equal(filled, wanted)


def test_a_logit_of_zero_is_background() -> None:
    logits = torch.ones(1, 8, 8)
    logits[0, 3, 3] = 0.0
    assert mask_ops.fill_holes(logits, 1)[0, 3, 3] == pytest.approx(0.1)


def test_a_hole_at_the_edge_and_a_diagonal_one_are_holes_too() -> None:
    logits = torch.ones(1, 8, 8)
    logits[0, 0, 5] = logits[0, 1, 6] = -1.0
    assert mask_ops.fill_holes(logits, 1).eq(logits).all()
    assert mask_ops.fill_holes(logits, 2).gt(0).all()


def test_sprinkles_become_just_background_and_nothing_else_changes() -> None:
    logits = ring(3)
    logits[0, 0, 0:5] = 2.0
    logits[0, 15, 15] = 9.0
    wanted = logits.clone()
    wanted[0, 15, 15] = -0.1
    assert torch.equal(mask_ops.remove_sprinkles(logits, 4), wanted)
    wanted[0, 0, 0:5] = -0.1
    assert torch.equal(mask_ops.remove_sprinkles(logits, 5), wanted)


def test_an_object_as_small_as_a_sprinkle_is_not_lost() -> None:
    logits = torch.full((3, 12, 12), -4.0)
    logits[0, 5, 5:9] = 1.0  # the whole object: 4 px
    logits[0, 0, 0] = 1.0
    logits[1, 2, 2:4] = logits[1, 8, 2:4] = 1.0  # two halves, neither of them the sprinkle
    wanted = logits.clone()
    wanted[0, 0, 0] = -0.1
    assert torch.equal(mask_ops.remove_sprinkles(logits, 8), wanted)


def test_clean_up_equals_a_flood_fill_on_random_logits() -> None:
    logits = torch.randn(6, 24, 24, generator=torch.Generator().manual_seed(3))
    logits += torch.linspace(-1, 1, 6)[:, None, None]
    wanted = logits.clone()
    for image in wanted:
        background = (image <= 0).numpy()
        image[torch.from_numpy(background & (component_areas(background) <= 6))] = 0.1
    filled = mask_ops.fill_holes(logits, 6)
    assert torch.equal(filled, wanted)
    for image in wanted:
        foreground = (image > 0).numpy()
        areas = component_areas(foreground)
        image[torch.from_numpy(foreground & (areas <= 6) & (areas < areas.max()))] = -0.1
    cleaned = mask_ops.remove_sprinkles(filled, 6)
    assert torch.equal(cleaned, wanted)
    assert not torch.equal(cleaned, filled) and not torch.equal(filled, logits)


def test_up_sampling_keeps_values_at_pixel_centres_of_area_aligned_grids() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]], dtype=torch.bfloat16)
    large = mask_ops.upsample_logits(logits, (4, 4))
    assert large.dtype == torch.float32
    assert large[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert large[0, :, 0].tolist() == [0.0, 0.5, 1.5, 2.0]
    assert mask_ops.upsample_logits(torch.zeros(0, 4, 4), (8, 6)).shape == (0, 8, 6)


def test_areas_and_boxes_of_masks() -> None:
    masks = torch.zeros(4, 9, 11, dtype=torch.bool)
    masks[1] = True
    masks[2, 3:5, 6:10] = True
    masks[3, 8, 10] = masks[3, 2, 4] = True
    assert mask_ops.mask_areas(masks).tolist() == [0, 99, 8, 2]
    boxes = mask_ops.mask_boxes_xyxy(masks)
    assert boxes.tolist() == [[0, 0, 0, 0], [0, 0, 11, 9], [6, 3, 10, 5], [4, 2, 11, 9]]
    assert boxes.dtype == mask_ops.mask_areas(masks).dtype == torch.int32
    turned_boxes = mask_ops.mask_boxes_xyxy(masks.transpose(1, 2))
    assert turned_boxes.tolist() == boxes[:, [1, 0, 3, 2]].tolist()
    assert mask_ops.mask_boxes_xyxy(masks[:0]).shape == (0, 4)


def test_stability_is_the_overlap_of_a_stricter_and_a_looser_mask() -> None:
    logits = torch.full((3, 4, 4), -3.0)
    logits[0, 0] = 2.0
    logits[0, 1] = 0.5
    logits[2, 0, 0] = -0.5
    assert mask_ops.stability_scores(logits).tolist() == [0.5, 1.0, 0.0]
    assert mask_ops.stability_scores(logits, delta=0.4).tolist() == [1.0, 1.0, 1.0]


def test_at_every_pixel_only_the_highest_object_keeps_its_logit() -> None:
    logits = torch.tensor(
        [[[3.0, 1.0, -2.0, 5.0]], [[1.0, 2.0, -1.0, 5.0]], [[0.5, -20.0, -3.0, 0.0]]]
    )
    got = mask_ops.suppress_overlaps(logits)
    assert got[:, 0].tolist() == [
        [3.0, -10.0, -10.0, 5.0],
        [-10.0, 2.0, -1.0, -10.0],
        [-10.0, -20.0, -10.0, -10.0],
    ]


def test_one_object_or_none_overlaps_nothing() -> None:
    for num_objects in (0, 1):
        logits = torch.randn(num_objects, 4, 5)
        assert torch.equal(mask_ops.suppress_overlaps(logits), logits)


class OpNames(TorchDispatchMode):
    """Collects the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().split("::")[1].split(".")[0])
        return func(*args, **kwargs or {})


OPERATIONS: list[Callable[[Tensor], Tensor]] = [
    lambda logits: mask_ops.fill_holes(logits, 8),
    lambda logits: mask_ops.remove_sprinkles(logits, 8),
    mask_ops.suppress_overlaps,
    mask_ops.stability_scores,
    lambda logits: mask_ops.mask_areas(logits > 0),
    lambda logits: mask_ops.mask_boxes_xyxy(logits > 0),
    lambda logits: mask_ops.upsample_logits(logits, (30, 20)),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_operation_waits_for_the_device(operation: Callable[[Tensor], Tensor]) -> None:
    logits = torch.randn(3, 16, 16)
    with OpNames() as ops:
        wanted = operation(logits)
    waiting = {"_local_scalar_dense", "item", "nonzero", "masked_select", "index", "unique"}
    assert ops.names and not ops.names & waiting
    assert operation(logits.to("meta")).shape == wanted.shape  # no shape depends on a value
    compiled = torch.compile(operation, fullgraph=True, backend="eager")
    assert torch.equal(compiled(logits), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_on_the_gpu_equal_the_host(operation: Callable[[Tensor], Tensor]) -> None:
    logits = torch.randn(5, 64, 64, generator=torch.Generator().manual_seed(0))
    device_logits = logits.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = operation(device_logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(got.cpu(), operation(logits), atol=1e-5)
