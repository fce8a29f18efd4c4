"""In which order frames are visited, and what each object wants of a visit: as a specification."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2model.labelling_plan import LabellingPlan, Span, Task, Visit
from sam2model.prompts import Prompt, PromptError, PromptOutOfRange
from sam2model.video import Frame

HEIGHT, WIDTH = 4, 6


class FakeVideo:
    """So many frames, no pixels; notes what is asked of it."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.asked: list[tuple[str, int, int | None]] = []

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        self.asked.append(("forward", start, stop))
        return self._frames(range(self.num_frames)[start:stop])

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        self.asked.append(("backward", start, stop))
        return self._frames(range(self.num_frames)[start:stop][::-1])

    def _frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield Frame(index, index / 10, np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def click(object_id: int, frame: int) -> Prompt:
    return Prompt(object_id, frame, ((1.0, 1.0),), (True,))


def box(object_id: int, frame: int) -> Prompt:
    return Prompt(object_id, frame, box_xyxy_px=(0.0, 0.0, 2.0, 2.0))


def mask(object_id: int, frame: int) -> Prompt:
    return Prompt(object_id, frame, mask=np.ones((HEIGHT, WIDTH), np.bool_))


def plan(*prompts: Prompt, first: int = 0, last: int | None = None) -> LabellingPlan:
    return LabellingPlan.make(prompts, first, last, HEIGHT, WIDTH)


def visits(of: LabellingPlan, video: Any) -> list[Visit]:
    return list(of.visits(video))


def order(of: LabellingPlan, num_frames: int) -> list[tuple[str, int]]:
    return [(v.stage, v.frame.index) for v in visits(of, FakeVideo(num_frames))]


def kinds(of: LabellingPlan, num_frames: int) -> list[tuple[int, dict[int, str]]]:
    """Of each visit, its frame and what each object wants."""
    return [
        (v.frame.index, {t.object_id: t.kind for t in of.tasks(v)})
        for v in visits(of, FakeVideo(num_frames))
    ]


# One object.


def test_an_object_is_followed_forward_to_the_end_and_then_backward_to_the_beginning() -> None:
    assert order(plan(click(1, 2)), 5) == [
        *(("forward", f) for f in (2, 3, 4)),
        *(("backward", f) for f in (1, 0)),
    ]


def test_an_object_that_begins_on_the_first_frame_needs_no_backward_pass() -> None:
    video = FakeVideo(3)

    assert [v.stage for v in visits(plan(click(1, 0)), video)] == ["forward"] * 3
    assert [kind for kind, _, _ in video.asked] == ["forward"]


def test_visits_of_the_backward_pass_go_backward_in_time() -> None:
    directions = {v.stage: v.direction for v in visits(plan(click(1, 0), box(1, 2)), FakeVideo(4))}
    assert directions == {"forward": 1, "restate": 1}
    assert [v.direction for v in visits(plan(click(1, 1)), FakeVideo(2))] == [1, -1]


def test_only_the_span_is_visited_both_ends_included() -> None:
    of = plan(click(1, 4), first=2, last=6)

    assert order(of, 20) == [
        *(("forward", f) for f in (4, 5, 6)),
        *(("backward", f) for f in (3, 2)),
    ]


def test_a_span_that_ends_beyond_the_video_ends_with_the_video() -> None:
    assert order(plan(click(1, 1), last=100), 3) == [
        ("forward", 1),
        ("forward", 2),
        ("backward", 0),
    ]


def test_an_object_begins_with_its_first_prompt_and_is_tracked_from_there() -> None:
    assert kinds(plan(click(1, 1)), 3) == [(1, {1: "begin"}), (2, {1: "track"}), (0, {1: "track"})]


# Later prompts.


def test_later_clicks_correct_what_tracking_gives_on_their_frame() -> None:
    of = plan(click(1, 0), click(1, 2))

    assert kinds(of, 4) == [
        (0, {1: "begin"}),
        (1, {1: "track"}),
        (2, {1: "correct"}),
        (3, {1: "track"}),
    ]


@pytest.mark.parametrize("later", [box, mask])
def test_a_later_box_or_mask_is_read_before_all_tracking(later: Any) -> None:
    of = plan(click(1, 1), later(1, 3))

    assert kinds(of, 5) == [
        (3, {1: "restate"}),
        (1, {1: "begin"}),
        (2, {1: "track"}),
        (3, {1: "recall"}),
        (4, {1: "track"}),
        (0, {1: "track"}),
    ]


@pytest.mark.parametrize("first", [box, mask])
def test_a_first_box_or_mask_is_a_beginning_like_any_other(first: Any) -> None:
    assert kinds(plan(first(1, 0)), 2) == [(0, {1: "begin"}), (1, {1: "track"})]


def test_frames_read_ahead_come_in_time_order_each_once() -> None:
    of = plan(click(1, 0), box(1, 6), mask(1, 2), click(2, 1), box(2, 6))
    video = FakeVideo(8)

    ahead = [v.frame.index for v in visits(of, video) if v.stage == "restate"]

    assert ahead == [2, 6]
    assert video.asked == [("forward", 2, 3), ("forward", 6, 7), ("forward", 0, None)] + [
        ("backward", 0, 1)
    ]


def test_a_task_carries_the_prompt_of_its_frame() -> None:
    first, later = click(1, 0), box(1, 2)
    of = plan(first, later)
    prompts = {
        (v.stage, v.frame.index): [t.prompt for t in of.tasks(v)] for v in visits(of, FakeVideo(4))
    }

    assert prompts["forward", 0] == [first]
    assert prompts["restate", 2] == prompts["forward", 2] == [later]
    assert prompts["forward", 1] == [None]


# Several objects.


def test_objects_that_begin_on_different_frames_are_each_followed_from_their_own() -> None:
    of = plan(click(5, 3), click(2, 1))

    assert kinds(of, 5) == [
        (1, {2: "begin"}),
        (2, {2: "track"}),
        (3, {5: "begin", 2: "track"}),
        (4, {5: "track", 2: "track"}),
        (2, {5: "track"}),
        (1, {5: "track"}),
        (0, {5: "track", 2: "track"}),
    ]


def test_objects_keep_the_order_in_which_they_were_named() -> None:
    of = plan(click(5, 3), click(2, 1), box(5, 0))

    assert of.object_ids == [5, 2]
    assert of.courses[5].begins == 0 and of.courses[2].begins == 1


@st.composite
def labellings(draw: st.DrawFn) -> tuple[LabellingPlan, int, int, int]:
    """A plan, the number of frames, the first and the last frame of the span."""
    num_frames = draw(st.integers(1, 12))
    first = draw(st.integers(0, num_frames - 1))
    last = draw(st.integers(first, num_frames - 1))
    places = draw(
        st.sets(st.tuples(st.integers(0, 3), st.integers(first, last)), min_size=1, max_size=8).map(
            sorted
        )
    )
    prompts = [draw(st.sampled_from([click, box, mask]))(o, f) for o, f in places]
    given_last = draw(st.sampled_from([last] + ([None] if last == num_frames - 1 else [])))
    return plan(*prompts, first=first, last=given_last), num_frames, first, last


@settings(deadline=None)  # no test on wall-clock time
@given(labellings())
def test_every_object_is_told_of_on_every_frame_of_the_span_exactly_once(
    labelling: tuple[LabellingPlan, int, int, int],
) -> None:
    of, num_frames, first, last = labelling
    told: list[tuple[int, int]] = []
    begun: set[int] = set()
    restated: set[tuple[int, int]] = set()
    for visit in visits(of, FakeVideo(num_frames)):
        index = visit.frame.index
        tasks: list[Task] = of.tasks(visit)
        assert tasks, "no frame is decoded for nothing"
        for task in tasks:
            object_id = task.object_id
            assert task.prompt is of.courses[object_id].prompts.get(index)
            if task.kind == "restate":
                restated.add((object_id, index))
                assert not begun
                continue
            told.append((object_id, index))
            if task.kind == "begin":
                begun.add(object_id)
            assert object_id in begun
            assert (task.kind == "recall") == ((object_id, index) in restated)
            assert (task.kind == "track") == (task.prompt is None)

    wanted = [(o, f) for o in of.object_ids for f in range(first, last + 1)]
    assert sorted(told) == sorted(wanted)


@pytest.mark.parametrize(
    ("told", "settled", "first"),
    [
        (Span(0), Span(0, -1), 5),
        (Span(8), Span(0, -1), 8),
        (Span(0), Span(5, 11), 12),
        (Span(1, 3), Span(0, -1), 3),  # only the backward pass, which comes from later frames
    ],
)
def test_the_first_frame_told_is_the_first_that_the_passes_come_to(
    told: Span, settled: Span, first: int
) -> None:
    course = plan(click(1, 5)).courses[1]

    assert replace(course, told=told, settled=settled).first_told == first


# What is refused.


def test_no_prompts_are_refused() -> None:
    with pytest.raises(PromptError, match="no prompts"):
        plan()


def test_two_prompts_of_an_object_on_a_frame_are_refused() -> None:
    with pytest.raises(PromptError, match="object 1 on frame 2: given twice"):
        plan(click(1, 2), click(2, 2), box(1, 2))


@pytest.mark.parametrize(
    ("first", "last", "span"), [(3, None, "3 to the end"), (0, 1, "0 to 1"), (3, 9, "3 to 9")]
)
def test_a_prompt_outside_the_span_is_refused(first: int, last: int | None, span: str) -> None:
    with pytest.raises(PromptOutOfRange, match=f"object 1 on frame 2: outside the span .* {span}"):
        plan(click(1, 2), first=first, last=last)


def test_a_prompt_outside_the_frame_is_refused() -> None:
    with pytest.raises(PromptOutOfRange, match=r"point \(7.0, 1.0\) outside 6×4 px"):
        plan(Prompt(1, 0, ((7.0, 1.0),), (True,)))


@pytest.mark.parametrize("prompts", [[click(1, 5)], [click(1, 0), click(1, 5)]])
def test_clicks_beyond_the_end_are_refused_when_the_end_is_reached(prompts: list[Prompt]) -> None:
    with pytest.raises(PromptOutOfRange, match="object 1 on frame 5: the video has f"):
        visits(plan(*prompts), FakeVideo(5))


def test_the_message_names_the_last_frame_when_it_was_seen() -> None:
    with pytest.raises(PromptOutOfRange, match="the video has frames 0 to 4$"):
        visits(plan(click(1, 0), click(2, 5)), FakeVideo(5))


def test_a_box_beyond_the_end_is_refused_before_any_frame_is_visited() -> None:
    seen = []
    with pytest.raises(PromptOutOfRange, match="object 1 on frame 5"):
        for visit in plan(click(1, 0), box(1, 5)).visits(FakeVideo(5)):
            seen.append(visit)
    assert seen == []
