"""sam2model.rle against pycocotools, on random masks, real masks and malformed strings."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch.utils._python_dispatch import TorchDispatchMode

from sam2model import rle
from sam2model.rle import BoolArray, RleError


def coco_encode(mask: BoolArray) -> str:
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def coco_rle(string: str, mask: BoolArray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": string}


def random_batches(num_batches: int, masks_a_batch: int) -> Iterator[BoolArray]:
    """Batches (N, H, W) of one size each: noise of any density, blobs, empty and full masks."""
    rng = np.random.default_rng(7)
    for batch in range(num_batches):
        height, width = rng.integers(1, 48, size=2)
        height, width = [(1, width), (height, 1), (8, 64), *[(height, width)] * 5][batch % 8]
        noise = rng.random((masks_a_batch, height, width))
        masks = noise < rng.random((masks_a_batch, 1, 1))
        coarse = rng.random((masks_a_batch, -(-height // 6), -(-width // 6))) < 0.4
        blobs = np.repeat(np.repeat(coarse, 6, axis=1), 6, axis=2)[:, :height, :width]
        masks[::2] = blobs[::2]
        masks[0], masks[1] = False, True
        yield masks


def test_ten_thousand_random_masks_equal_pycocotools_on_the_host_and_the_device_path() -> None:
    for masks in random_batches(num_batches=200, masks_a_batch=50):
        wanted = [coco_encode(mask) for mask in masks]
        assert rle.encode_masks(masks) == wanted
        tensor = torch.from_numpy(masks)
        runs = rle.encode_runs(tensor, capacity=masks[0].size + 1)
        assert not runs.overflowed.any()
        assert rle.runs_to_strings(runs) == wanted


def test_decode_area_and_box_equal_pycocotools_on_random_masks() -> None:
    for masks in random_batches(num_batches=24, masks_a_batch=20):
        for mask in masks:
            string = coco_encode(mask)
            height, width = mask.shape
            assert np.array_equal(rle.decode(string, height, width), mask)
            assert rle.area(string) == mask.sum()
            x, y, w, h = coco.toBbox(coco_rle(string, mask))
            assert rle.box_xyxy(string, height, width) == (x, y, x + w, y + h)


def test_intersection_and_iou_equal_those_of_the_decoded_masks() -> None:
    for masks in random_batches(num_batches=16, masks_a_batch=16):
        strings = rle.encode_masks(masks)
        for i, j in zip(range(16), [*range(3, 16), 0, 1, 2], strict=True):
            both, either = (masks[i] & masks[j]).sum(), (masks[i] | masks[j]).sum()
            assert rle.intersection_px(strings[i], strings[j]) == both
            assert rle.iou(strings[i], strings[j]) == (both / either if either else 1.0)


def test_every_mask_of_a_real_sa_v_annotation_survives_decode_and_encode(
    real_data: Callable[[str], Path],
) -> None:
    frames = json.loads(real_data("sav_000001_manual.json").read_text())["masklet"]
    masks = [mask for frame in frames for mask in frame]
    strings = [mask["counts"] for mask in masks]
    height, width = masks[0]["size"]
    decoded = [rle.decode(string, height, width) for string in strings]
    assert [rle.encode_mask(mask) for mask in decoded] == strings
    every_tenth = torch.from_numpy(np.stack(decoded[::10]))
    assert rle.encode_masks(every_tenth) == strings[::10]
    assert rle.runs_to_strings(rle.encode_runs(every_tenth)) == strings[::10]
    assert [rle.area(string) for string in strings] == [int(coco.area(mask)) for mask in masks]
    assert sum(rle.area(string) > 0 for string in strings) == 480
    boxes = np.array([rle.box_xyxy(string, height, width) for string in strings])
    boxes[:, 2:] -= boxes[:, :2]
    assert np.array_equal(boxes, coco.toBbox(masks))


def eye(size: int) -> BoolArray:
    return np.eye(size, dtype=bool)


def constant(height: int, width: int, value: bool) -> BoolArray:
    return np.full((height, width), value)


GOLDEN = [
    (np.array([[0, 0, 1, 1, 1, 0, 1]], dtype=bool), "231N"),
    (np.array([[0, 0, 1, 1, 1, 0, 1]], dtype=bool).T, "231N"),
    (constant(2, 3, False), "6"),
    (constant(2, 3, True), "06"),
    (eye(3), "013000"),
    (constant(480, 854, False), "PZ`<"),
    (constant(480, 854, True), "0PZ`<"),
    (constant(848, 480, False), "P`]<"),
]


@pytest.mark.parametrize(("mask", "string"), GOLDEN)
def test_golden_strings(mask: BoolArray, string: str) -> None:
    assert rle.encode_mask(mask) == string
    assert rle.encode_mask(np.asfortranarray(mask)) == string
    assert rle.encode_mask(torch.from_numpy(mask.copy())) == string
    assert np.array_equal(rle.decode(string, *mask.shape), mask)


def test_golden_bar_and_square() -> None:
    bar = constant(4, 6, False)
    bar[1, 2:5] = True
    assert rle.encode_mask(bar) == "9130003"
    square = constant(480, 854, False)
    square[200:300, 300:400] = True
    string = rle.encode_mask(square)
    assert len(string) == 209 and string.startswith("Xj\\4T3l;0000")
    assert rle.box_xyxy(string, 480, 854) == (300, 200, 400, 300)
    assert rle.area(string) == 10_000


def test_a_full_hd_mask_equals_pycocotools_in_either_memory_order() -> None:
    y, x = np.mgrid[:1080, :1920]
    mask = ((x - 900) ** 2 / 400**2 + (y - 500) ** 2 / 300**2 < 1) & (np.sin(x / 9) < 0.9)
    string = coco_encode(mask)
    assert rle.encode_mask(mask) == rle.encode_mask(np.asfortranarray(mask)) == string
    assert rle.runs_to_strings(rle.encode_runs(torch.from_numpy(mask)[None])) == [string]
    assert np.array_equal(rle.decode(string, 1080, 1920), mask)


def test_masks_that_are_views_are_encoded_as_what_they_show() -> None:
    masks = np.random.default_rng(0).random((6, 20, 30)) < 0.5
    for view in (masks[::2, ::-1, 3:-2], masks.transpose(0, 2, 1)[:, 1:], masks[:, :, ::3]):
        wanted = [coco_encode(mask) for mask in view]
        assert rle.encode_masks(view) == wanted
        tensor = torch.from_numpy(masks[::2, :, 3:-2]).transpose(1, 2)
        assert rle.runs_to_strings(rle.encode_runs(tensor)) == rle.encode_masks(tensor)


def test_no_masks_give_no_strings() -> None:
    none = torch.zeros(0, 4, 5, dtype=torch.bool)
    assert rle.encode_masks(none) == []
    assert rle.runs_to_strings(rle.encode_runs(none)) == []
    assert rle.counts_to_strings(np.empty(0, np.int64), []) == []


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(1, 4, 5, dtype=torch.uint8),
        torch.zeros(4, 5, dtype=torch.bool),
        torch.zeros(1, 0, 5, dtype=torch.bool),
        np.array([[[0, 1, 2]]]),
    ],
)
def test_masks_that_are_not_boolean_images_are_refused(masks: Any) -> None:
    with pytest.raises(RleError, match="wanted .*bool"):
        rle.encode_masks(masks)
    with pytest.raises(RleError, match="wanted .*bool"):
        rle.encode_runs(masks)


def test_masks_too_large_for_int32_positions_are_refused() -> None:
    with pytest.raises(RleError, match="1100 masks of 1080×1920"):
        rle.encode_runs(torch.empty(1100, 1080, 1920, dtype=torch.bool, device="meta"))


COUNTS = st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 40), min_size=1, max_size=40)


@given(st.lists(COUNTS, max_size=8))
@settings(max_examples=150, deadline=None)
def test_counts_survive_the_string_alone_and_in_a_batch(batch: list[list[int]]) -> None:
    strings = [rle.counts_to_string(counts) for counts in batch]
    for string, counts in zip(strings, batch, strict=True):
        assert rle.string_to_counts(string).tolist() == counts
    flat = np.array([count for counts in batch for count in counts], dtype=np.int64)
    num_runs = [len(counts) for counts in batch]
    assert rle.counts_to_strings(flat, num_runs) == strings
    flat_back, num_runs_back = rle.strings_to_counts(strings)
    assert flat_back.tolist() == flat.tolist()
    assert num_runs_back.tolist() == num_runs


@given(COUNTS.filter(lambda counts: 0 < sum(counts) < 2**31 and 0 not in counts[1:]))
@settings(max_examples=100, deadline=None)
def test_long_runs_are_written_as_pycocotools_writes_them(counts: list[int]) -> None:
    uncompressed = {"size": [1, sum(counts)], "counts": counts}
    wanted = coco.frPyObjects(uncompressed, 1, sum(counts))["counts"].decode("ascii")
    assert rle.counts_to_string(counts) == wanted


@pytest.mark.parametrize("counts", [[3, -1], [2**31]])
def test_counts_outside_the_range_are_refused(counts: list[int]) -> None:
    with pytest.raises(RleError, match=f"run of {counts[-1]} px"):
        rle.counts_to_string(counts)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("06/", "character 2, near '06/': got a character outside"),
        ("06 ", "outside ASCII 48 to 111"),
        ("06p", "outside ASCII 48 to 111"),
        ("0é6", "character 1.*outside ASCII 48 to 111"),
        ("0\ud800", "character 1.*outside ASCII 48 to 111"),
        ("PZ`", "character 2.*got an end inside a run"),
        ("PPPPPPP0", "got a run of more than 7 characters"),
        ("06O", "character 2.*got a run outside 0 to 2147483647 px"),
        ("PPPPPP4", "got a run outside 0 to 2147483647 px"),
    ],
)
def test_a_malformed_string_is_refused_and_its_place_named(string: str, message: str) -> None:
    with pytest.raises(RleError, match=message):
        rle.decode(string, 2, 3)
    with pytest.raises(RleError, match=f"rle 2 of 4.*{message}"):
        rle.strings_to_counts(["06", "", string, "6"])


def test_one_string_cannot_lend_its_end_to_the_next() -> None:
    with pytest.raises(RleError, match="rle 0 of 2, character 2.*an end inside a run"):
        rle.strings_to_counts(["PZ`", "<"])


@pytest.mark.parametrize("read", [rle.decode, rle.box_xyxy])
@pytest.mark.parametrize(("string", "got"), [("5", 5), ("7", 7), ("07", 7), ("", 0), ("02", 2)])
def test_a_string_of_another_size_is_refused(
    read: Callable[[str, int, int], object], string: str, got: int
) -> None:
    with pytest.raises(RleError, match=f"got {got} px; wanted 2×3 = 6"):
        read(string, 2, 3)


def test_negative_sizes_with_a_fitting_product_are_refused() -> None:
    with pytest.raises(RleError, match="wanted -2×-3"):
        rle.decode("6", -2, -3)


def test_masks_of_different_sizes_have_no_intersection() -> None:
    with pytest.raises(RleError, match="masks of 6 and 7 px"):
        rle.iou("6", "7")


def test_two_empty_masks_agree_wholly_and_one_not_at_all() -> None:
    assert rle.iou("6", "6") == 1.0
    assert rle.iou("6", "06") == rle.iou("06", "6") == 0.0


def test_empty_runs_inside_a_mask_are_read_as_nothing() -> None:
    string = rle.counts_to_string([2, 0, 1, 2, 0, 1])
    mask = np.array([[0, 0, 0, 1, 1, 1]], dtype=bool)
    assert np.array_equal(rle.decode(string, 1, 6), mask)
    assert rle.area(string) == 3
    assert rle.box_xyxy(string, 1, 6) == (3, 0, 6, 1)
    assert rle.iou(string, rle.encode_mask(mask)) == 1.0


def overflowing_masks() -> torch.Tensor:
    masks = torch.zeros(4, 10, 12, dtype=torch.bool)
    masks[1, ::2] = True
    masks[2, 3:6, 4:8] = True
    masks[3] = torch.rand(10, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    return masks


def test_masks_beyond_the_capacity_are_flagged_and_encoded_again_on_fetching() -> None:
    masks = overflowing_masks()
    runs = rle.encode_runs(masks, capacity=9)
    assert runs.counts.shape == (4, 9)
    assert runs.overflowed.tolist() == [False, True, False, True]
    assert runs.num_runs[:3].tolist() == [1, 121, 9]
    assert rle.runs_to_strings(runs.to("cpu"), masks) == [coco_encode(m) for m in masks.numpy()]


def test_an_overflow_without_the_masks_is_an_error_never_a_cut_string() -> None:
    runs = rle.encode_runs(overflowing_masks(), capacity=9)
    with pytest.raises(RleError, match="mask 1: 121 runs, capacity 9"):
        rle.runs_to_strings(runs)
    with pytest.raises(RleError, match="runs of 4 masks with 2 masks"):
        rle.runs_to_strings(runs, overflowing_masks()[:2])


def test_counts_of_a_mask_that_exactly_fills_the_capacity_are_complete() -> None:
    masks = overflowing_masks()[2:3]
    runs = rle.encode_runs(masks, capacity=9)
    assert runs.counts.sum() == 120
    assert rle.runs_to_strings(runs) == [coco_encode(masks[0].numpy())]


class OpNames(TorchDispatchMode):
    """Collects the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **kwargs or {})


WAITS_FOR_THE_DEVICE = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "index",
    "unique",
}


def operators_that_wait(function: Callable[[], object]) -> set[str]:
    with OpNames() as ops:
        function()
    assert ops.names
    return {n for n in ops.names if n.split("::")[1].split(".")[0] in WAITS_FOR_THE_DEVICE}


def test_the_device_encoder_runs_no_operator_that_waits_for_the_device() -> None:
    masks = overflowing_masks()
    assert operators_that_wait(lambda: rle.encode_runs(masks, capacity=16)) == set()
    assert operators_that_wait(lambda: masks.any().item()), "the test would not see a wait"
    assert operators_that_wait(lambda: masks[masks]), "the test would not see a wait"


def test_the_device_encoder_needs_no_values_to_know_its_shapes() -> None:
    runs = rle.encode_runs(torch.empty(3, 1080, 1920, dtype=torch.bool, device="meta"))
    assert runs.counts.shape == (3, rle.DEFAULT_CAPACITY)
    assert runs.counts.dtype == runs.num_runs.dtype == torch.int32


def test_the_device_encoder_compiles_as_one_graph() -> None:
    masks = overflowing_masks()
    compiled = torch.compile(rle.encode_runs, fullgraph=True, backend="eager")
    got, wanted = compiled(masks, 16), rle.encode_runs(masks, 16)
    assert torch.equal(got.counts, wanted.counts)
    assert torch.equal(got.num_runs, wanted.num_runs)


@pytest.mark.gpu
def test_encoding_on_the_gpu_equals_the_host() -> None:
    masks = torch.rand(5, 270, 480, generator=torch.Generator().manual_seed(0)) < 0.3
    masks[1:3] = False
    masks[2, 40:90, 50:200] = True
    device_masks = masks.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        runs = rle.encode_runs(device_masks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rle.runs_to_strings(runs, device_masks) == rle.encode_masks(masks)
    assert rle.encode_masks(device_masks) == rle.encode_masks(masks)
