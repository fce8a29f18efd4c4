"""From which frame on a changed prompt changes masks: the table of the module, row by row."""

from typing import Any

import numpy as np
import pytest

from sam2model.prompt_effect import Effect, effect_of_change, history, said
from sam2model.prompts import Prompt


def click(frame: int, x: float = 1.0) -> Prompt:
    return Prompt(1, frame, ((x, 1.0),), (True,))


def box(frame: int) -> Prompt:
    return Prompt(1, frame, box_xyxy_px=(0.0, 0.0, 2.0, 2.0))


def mask(frame: int) -> Prompt:
    return Prompt(1, frame, mask=np.ones((4, 6), np.bool_))


def effect(before: list[Prompt], after: list[Prompt], cap: int = -1) -> Effect | None:
    tables = [history({p.frame_index: p for p in prompts}) for prompts in (before, after)]
    return effect_of_change(tables[0], tables[1], cap)


def test_the_same_prompts_have_no_effect() -> None:
    assert effect([click(2), box(5)], [box(5), click(2)]) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [click(3)]),
        ([click(3)], [click(3, 2.0)]),
        ([click(3)], [box(3)]),
        ([click(3)], [click(1), click(3)]),
        ([click(3), click(7)], [click(7)]),
    ],
    ids=["new object", "other click", "box for click", "earlier prompt", "first one removed"],
)
def test_another_first_prompt_reaches_every_frame(
    before: list[Prompt], after: list[Prompt]
) -> None:
    found = effect(before, after)

    assert found is not None and all(frame in found for frame in range(20))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([click(3)], [click(3), click(9)]),
        ([click(3), click(9)], [click(3)]),
        ([click(3), click(9)], [click(3), click(9, 2.0)]),
        ([click(3), box(12), click(9)], [click(3), box(12)]),
    ],
    ids=["added", "removed", "given anew", "beside a box"],
)
def test_later_clicks_reach_from_their_frame_on_and_what_lies_before_the_first_prompt(
    before: list[Prompt], after: list[Prompt]
) -> None:
    found = effect(before, after)

    assert found is not None
    assert [f for f in range(15) if f not in found] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("later", [box, mask])
def test_a_later_box_or_mask_reaches_all_but_the_first_prompted_frame(later: Any) -> None:
    for before, after in (([click(3)], [click(3), later(9)]), ([click(3), later(9)], [click(3)])):
        found = effect(before, after)

        assert found is not None and [f for f in range(15) if f not in found] == [3]


def test_with_capped_conditioning_frames_a_later_box_reaches_as_far_as_it_is_read() -> None:
    # Two are read: the nearest before and the nearest at or after, so 12 is not read before 7.
    found = effect([click(0), box(6)], [click(0), box(6), box(12)], cap=2)

    assert found is not None and min(f for f in range(20) if f in found) == 7


def test_equal_prompts_say_the_same_and_others_something_else() -> None:
    other_shape = Prompt(1, 0, mask=np.ones((6, 4), np.bool_))
    prompts = [click(0), click(0, 2.0), box(0), mask(0), other_shape]

    assert [said(p) for p in prompts] == [said(p) for p in prompts]
    assert len({said(p) for p in prompts}) == 5
    assert [said(p).is_complete for p in prompts] == [False, False, True, True, True]
