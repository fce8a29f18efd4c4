"""Tracking backwards finds where a mask went over to something else, and stays within its share."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from test_quality import rows, square

from sam2model import Prompt
from sam2model.engine import DeadlineExceeded
from sam2model.rle import encode_mask
from sam2model.tracked_masks import FrameMasks, TrackedMask
from workflows.quality import FlagKind, assess
from workflows.quality_backward import SPAN_FRAMES, disagreement, plan_checks

HEIGHT, WIDTH, FRAMES, SWAP = 60, 100, 120, 70


def upper(t: int) -> npt.NDArray[np.bool_]:
    return square(20 + t / 4, 10)


def lower(t: int) -> npt.NDArray[np.bool_]:
    return square(20 + t / 4, 40)


class TwinEngine:
    """Follows whichever of two twins the prompt is on, in any direction."""

    def __init__(self) -> None:
        self.frames = 0
        self.spans: list[tuple[int, int | None]] = []

    def label(
        self,
        video: Any,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        self.spans.append((first_frame, last_frame))
        assert last_frame is not None
        for t in range(last_frame, first_frame - 1, -1):
            self.frames += 1
            masks = []
            for prompt in prompts:
                assert prompt.mask is not None
                twin = upper if (prompt.mask & upper(prompt.frame_index)).any() else lower
                counts = encode_mask(twin(t))
                masks.append(
                    TrackedMask(prompt.object_id, counts, 256, (0, 0, 1, 1), 5, 0.9, 0.9, False)
                )
            yield FrameMasks(t, t / 10, HEIGHT, WIDTH, masks)


class Info:
    height, width = HEIGHT, WIDTH


class SomeVideo:
    info = Info()


VIDEO: Any = SomeVideo()


def track(object_id: int, swaps: bool) -> pa.Table:
    return rows(object_id, [(lower if swaps and t >= SWAP else upper)(t) for t in range(FRAMES)])


def test_a_swap_that_no_score_tells_of_is_found_and_a_good_track_is_not_blamed() -> None:
    masks = pa.concat_tables([track(1, True), track(2, False)])
    engine: Any = TwinEngine()
    found = disagreement(engine, VIDEO, masks, plan_checks(masks, 0.2))
    assert found[1, SWAP] == 1.0
    assert all(much == 0.0 for (o, _), much in found.items() if o == 2)
    quality = assess(masks, found)
    worst = max(quality[1].flags, key=lambda flag: flag["doubt"])
    assert (worst["frame_index"], worst["kind"]) == (SWAP, FlagKind.BACKWARD)
    assert quality[1].doubt > assess(masks)[1].doubt


@pytest.mark.parametrize(("share", "checks"), [(0.0, 0), (0.05, 0), (0.1, 1), (0.2, 2), (1.0, 9)])
def test_no_more_frames_are_tracked_than_the_share(share: float, checks: int) -> None:
    engine: Any = TwinEngine()
    masks = track(1, False)
    disagreement(engine, VIDEO, masks, plan_checks(masks, share))
    assert engine.frames <= share * FRAMES
    assert len(engine.spans) == checks, "at 1.0 the first of ten spans holds the prompt"


def test_a_span_with_a_prompt_needs_no_check_and_an_absent_object_cannot_be() -> None:
    masks = track(1, False)
    place = masks.schema.get_field_index("is_prompt")
    every_tenth = pa.array([t % 10 == 0 for t in range(FRAMES)])
    assert plan_checks(masks.set_column(place, "is_prompt", every_tenth), 1.0) == []
    nothing = rows(1, [np.zeros((HEIGHT, WIDTH), np.bool_)] * FRAMES)
    assert plan_checks(nothing, 1.0) == []
    assert SPAN_FRAMES > 10


def test_an_error_of_the_engine_reaches_the_caller() -> None:
    class Late(TwinEngine):
        def label(self, *args: Any, **kwargs: Any) -> Iterator[FrameMasks]:
            raise DeadlineExceeded("too late")

    engine: Any = Late()
    masks = track(1, False)
    with pytest.raises(TimeoutError):
        disagreement(engine, VIDEO, masks, plan_checks(masks, 0.5))
