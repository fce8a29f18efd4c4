"""A prompt that no video could satisfy is refused when it is made, one outside a video when met."""

import math
from typing import Any

import numpy as np
import pytest

from sam2model.prompts import Prompt, PromptError, PromptOutOfRange

MASK = np.ones((4, 6), np.bool_)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"object_id": -1}, "object -1: ids are 0 or more"),
        ({"frame_index": -2}, "object 3 on frame -2: frames are counted from 0"),
        ({"positive": ()}, "frame 7: 1 points but 0 signs"),
        ({"positive": (True, False)}, "frame 7: 1 points but 2 signs"),
        ({"points_px": (), "positive": ()}, "frame 7: empty; wanted points, a box or a mask"),
        ({"mask": MASK}, "frame 7: a mask together with points or a box"),
        ({"points_px": ((math.nan, 1.0),)}, "frame 7: coordinates must be finite"),
        ({"points_px": ((1.0, math.inf),)}, "frame 7: coordinates must be finite"),
        ({"box_xyxy_px": (0.0, 0.0, math.nan, 5.0)}, "frame 7: coordinates must be finite"),
        ({"box_xyxy_px": (5.0, 0.0, 5.0, 5.0)}, r"frame 7: box .*; wanted x0 < x1 and y0 < y1"),
        ({"box_xyxy_px": (0.0, 6.0, 5.0, 5.0)}, r"frame 7: box .*; wanted x0 < x1 and y0 < y1"),
    ],
)
def test_a_prompt_that_fits_no_video_is_refused_at_construction(
    values: dict[str, Any], message: str
) -> None:
    sound: dict[str, Any] = {
        "object_id": 3,
        "frame_index": 7,
        "points_px": ((1.0, 2.0),),
        "positive": (True,),
    }
    Prompt(**sound)

    with pytest.raises(PromptError, match=message):
        Prompt(**{**sound, **values})


def test_points_a_box_both_or_a_mask_make_a_prompt() -> None:
    box = (1.0, 2.0, 3.0, 4.0)
    Prompt(1, 0, box_xyxy_px=box)
    Prompt(1, 0, ((1.0, 2.0), (3.0, 4.0)), (True, False), box)
    Prompt(1, 0, mask=MASK)


WIDTH, HEIGHT = 6, 4


@pytest.mark.parametrize("point", [(0.0, 0.0), (5.99, 3.99), (2.5, 1.0)])
def test_a_point_inside_the_frame_is_taken(point: tuple[float, float]) -> None:
    Prompt(1, 0, (point,), (True,)).check_inside(None, HEIGHT, WIDTH)


@pytest.mark.parametrize("point", [(6.0, 0.0), (0.0, 4.0), (-0.1, 0.0), (0.0, -1.0), (3.0, 5.0)])
def test_a_point_outside_the_frame_is_refused_with_its_place(point: tuple[float, float]) -> None:
    prompt = Prompt(9, 5, ((1.0, 1.0), point), (True, True))

    with pytest.raises(PromptOutOfRange) as caught:
        prompt.check_inside(None, HEIGHT, WIDTH)

    assert str(caught.value) == f"prompt of object 9 on frame 5: point {point} outside 6×4 px"


def test_a_box_may_end_at_the_edge_and_not_beyond() -> None:
    Prompt(1, 0, box_xyxy_px=(0.0, 0.0, 6.0, 4.0)).check_inside(None, HEIGHT, WIDTH)

    for box in ((-1.0, 0.0, 6.0, 4.0), (0.0, 0.0, 6.1, 4.0), (0.0, 0.0, 6.0, 4.1)):
        with pytest.raises(PromptOutOfRange, match=r"box .* outside 6×4 px"):
            Prompt(1, 0, box_xyxy_px=box).check_inside(None, HEIGHT, WIDTH)


def test_a_mask_of_another_size_is_refused() -> None:
    Prompt(1, 0, mask=MASK).check_inside(None, HEIGHT, WIDTH)

    with pytest.raises(PromptOutOfRange, match=r"mask of \(4, 6\).*wanted \(6, 4\)"):
        Prompt(1, 0, mask=MASK).check_inside(None, WIDTH, HEIGHT)


def test_a_frame_beyond_the_end_is_refused_when_the_end_is_known() -> None:
    prompt = Prompt(1, 10, ((1.0, 1.0),), (True,))

    prompt.check_inside(None, HEIGHT, WIDTH)
    prompt.check_inside(11, HEIGHT, WIDTH)
    with pytest.raises(PromptOutOfRange, match="frame 10: the video has frames 0 to 9"):
        prompt.check_inside(10, HEIGHT, WIDTH)
