"""J and F of two masks: golden values of DAVIS' own code, and a literal second version."""

import numpy as np
import pytest
from davis_reference import Mask, reference_f, reference_j, reference_outline

from workflows.mask_metrics import (
    boundary_map,
    boundary_tolerance_px,
    region_similarity,
    score_pair,
)


def square(top: int, left: int, size: int = 100, shape: tuple[int, int] = (480, 854)) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def hollow_square() -> Mask:
    return square(200, 300) & ~square(245, 345, 10)


def corner(width: int) -> Mask:
    mask = np.zeros((480, 854), dtype=bool)
    mask[:100, :width] = True
    return mask


TRUTH = square(200, 300)
EMPTY = np.zeros_like(TRUTH)
FULL = np.ones_like(TRUTH)


# J and F as davis2017-evaluation computes them for these pairs (predicted, truth).
@pytest.mark.parametrize(
    ("predicted", "truth", "j", "f"),
    [
        pytest.param(square(200, 301), TRUTH, 0.980198, 1.0, id="1 px aside"),
        pytest.param(square(200, 305), TRUTH, 0.904762, 1.0, id="5 px aside"),
        pytest.param(square(200, 308), TRUTH, 0.851852, 1.0, id="8 px aside, the tolerance"),
        pytest.param(square(200, 309), TRUTH, 0.834862, 0.54, id="9 px aside"),
        pytest.param(square(200, 320), TRUTH, 0.666667, 0.485, id="20 px aside"),
        pytest.param(square(208, 308), TRUTH, 0.733703, 0.9625, id="8 px aside and down"),
        pytest.param(square(200, 400), TRUTH, 0.0, 0.2925, id="next to it"),
        pytest.param(square(200, 500), TRUTH, 0.0, 0.0, id="far from it"),
        pytest.param(square(210, 310, 80), TRUTH, 0.64, 0.0, id="inside it"),
        pytest.param(hollow_square(), TRUTH, 0.99, 0.952381, id="with a hole"),
        pytest.param(EMPTY, TRUTH, 0.0, 0.0, id="nothing predicted"),
        pytest.param(TRUTH, EMPTY, 0.0, 0.0, id="nothing to find"),
        pytest.param(EMPTY, EMPTY, 1.0, 1.0, id="both empty"),
        pytest.param(corner(110), corner(100), 0.909091, 0.529412, id="cut by the image's edge"),
        pytest.param(FULL, FULL, 1.0, 1.0, id="both full: no outline on either side"),
        pytest.param(FULL, EMPTY, 0.0, 1.0, id="full and empty: no outline on either side"),
    ],
)
def test_scores_equal_the_values_of_the_reference_code(
    predicted: Mask, truth: Mask, j: float, f: float
) -> None:
    score = score_pair(predicted, truth)
    assert score.j == pytest.approx(j, abs=5e-7)
    assert score.f == pytest.approx(f, abs=5e-7)


def random_mask(rng: np.random.Generator, height: int, width: int) -> Mask:
    kind = rng.integers(8)
    if kind == 0:
        return np.zeros((height, width), dtype=bool)
    if kind == 1:
        return np.ones((height, width), dtype=bool)
    if kind == 2:
        noise: Mask = rng.random((height, width)) < rng.random()
        return noise
    y, x = np.ogrid[:height, :width]
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(rng.integers(1, 4)):
        middle_y, middle_x = rng.integers(height), rng.integers(width)
        radius_y, radius_x = rng.integers(1, height + 1), rng.integers(1, width + 1)
        mask |= ((y - middle_y) / radius_y) ** 2 + ((x - middle_x) / radius_x) ** 2 <= 0.3
    return mask


def random_pair(rng: np.random.Generator, height: int, width: int) -> tuple[Mask, Mask]:
    """Two unrelated masks, or one mask moved by about the tolerance."""
    mask = random_mask(rng, height, width)
    if rng.random() < 0.5:
        return mask, random_mask(rng, height, width)
    reach = boundary_tolerance_px(height, width) + 1
    down, right = rng.integers(-reach, reach + 1, size=2)
    return np.roll(mask, (down, right), axis=(0, 1)), mask


def assert_equal_to_reference(predicted: Mask, truth: Mask) -> None:
    score = score_pair(predicted, truth)
    assert score.j == pytest.approx(reference_j(predicted, truth), abs=1e-9)
    assert score.f == pytest.approx(reference_f(predicted, truth), abs=1e-9)


def test_scores_equal_a_whole_image_dilation_on_1200_random_pairs() -> None:
    rng = np.random.default_rng(7)
    partly_right = 0
    for number in range(1200):
        # Thin and long images have a large tolerance for few pixels: up to 13 px at 1600 columns.
        height, width = int(rng.integers(1, 40)), int(rng.integers(1, 1600 if number % 4 else 60))
        if rng.random() < 0.5:
            height, width = width, height
        predicted, truth = random_pair(rng, height, width)
        assert_equal_to_reference(predicted, truth)
        partly_right += 0 < score_pair(predicted, truth).f < 1
    assert partly_right > 400  # the pairs are no trivial ones


@pytest.mark.parametrize(("height", "width"), [(480, 854), (720, 1280)])
def test_scores_equal_a_whole_image_dilation_at_video_sizes(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    for _ in range(6):
        assert_equal_to_reference(*random_pair(rng, height, width))


def test_the_layout_in_memory_does_not_change_a_score() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        predicted, truth = random_pair(rng, 60, 90)
        by_column = score_pair(np.asfortranarray(predicted), np.asfortranarray(truth))
        mixed = score_pair(np.asfortranarray(predicted), truth)
        assert score_pair(predicted, truth) == by_column == mixed


def test_masks_are_left_as_they_were() -> None:
    predicted, truth = square(200, 301), TRUTH.copy()
    score_pair(predicted, truth)
    assert (predicted == square(200, 301)).all()
    assert (truth == TRUTH).all()


@pytest.mark.parametrize(
    ("height", "width", "tolerance_px"),
    [(480, 854, 8), (720, 1280, 12), (1080, 1920, 18), (100, 100, 2)],
)
def test_the_tolerance_grows_with_the_diagonal(height: int, width: int, tolerance_px: int) -> None:
    assert boundary_tolerance_px(height, width) == tolerance_px


def test_a_full_mask_has_no_outline() -> None:
    assert not boundary_map(FULL).any()


def test_an_outline_lies_on_the_north_west_side_of_its_edge() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2:4] = True
    drawn = ["".join(".#"[pixel] for pixel in row) for row in boundary_map(mask).astype(int)]
    assert drawn == [".###.", ".#.#.", ".###.", "....."]
    assert (boundary_map(mask) == reference_outline(mask)).all()


def test_region_similarity_stands_alone() -> None:
    assert region_similarity(square(200, 320), TRUTH) == pytest.approx(2 / 3)


def test_masks_of_two_sizes_are_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"predicted \(2, 3\), truth \(3, 2\)"):
        score_pair(np.zeros((2, 3), dtype=bool), np.zeros((3, 2), dtype=bool))
