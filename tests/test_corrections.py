"""What goes wrong in transformers 5.23 when a person corrects or adds objects, and not in ours.

Each defect is shown in transformers first, then its absence in ours. Where transformers has no
sound answer, its own layers give one: one object alone, or `MendedHfModel`.
"""

from collections.abc import Sequence

import pytest
from reference import MendedHfModel
from scenarios import DISC, OTHER, TOLERANCE, click
from script import Add, Propagate, Run, Step, Stream, largest_error, last_of_each_frame, of_object
from two_sides import (
    BOTH,
    LATER,
    VISIBLE,
    change,
    our_side_of,
    ours,
    their_side_of,
    theirs,
    unanswered,
)


def test_in_transformers_a_click_on_a_tracked_frame_is_lost() -> None:
    tracked = [*click(0), Propagate()]
    before = last_of_each_frame(theirs(tracked))

    documented = last_of_each_frame(theirs([*tracked, unanswered(LATER), Propagate()]))
    answered = theirs([*tracked, *click(LATER, at=OTHER), Propagate()])

    assert all(change(documented[f], before[f]) < TOLERANCE for f in before)
    shown = next(e for e in answered[len(before) + 1 :] if e.frame == LATER)
    assert change(shown, before[LATER]) > VISIBLE  # shown once …
    last = last_of_each_frame(answered)
    assert all(change(last[f], before[f]) < TOLERANCE for f in before)  # … then lost


@BOTH
@pytest.mark.parametrize("answered_first", [True, False])
def test_a_click_on_a_tracked_frame_changes_it_and_its_neighbours(
    semantics: str, answered_first: bool
) -> None:
    tracked = [*click(0), Propagate()]
    correction = click(LATER, at=OTHER) if answered_first else [unanswered(LATER)]
    before = last_of_each_frame(ours(tracked, semantics))

    after = last_of_each_frame(ours([*tracked, *correction, Propagate()], semantics))

    assert change(after[LATER], before[LATER]) > VISIBLE
    assert change(after[LATER - 1], before[LATER - 1]) > 10 * TOLERANCE
    assert change(after[LATER + 1], before[LATER + 1]) > 10 * TOLERANCE


@BOTH
def test_a_corrected_frame_keeps_its_mask_however_often_it_is_propagated(semantics: str) -> None:
    script = [*click(0), Propagate(), *click(LATER, at=OTHER)]
    side = our_side_of(semantics)

    answer = side.play(script)[-1]
    again = side.play([Propagate(), Propagate(reverse=True), Propagate(), Run(LATER)])

    kept = [e for e in again if e.frame == LATER]
    assert len(kept) >= 3
    assert all(change(e, answer) == 0 for e in kept)


@BOTH
def test_a_correction_need_not_be_run_before_it_is_propagated(semantics: str) -> None:
    tracked = [*click(0), Propagate()]

    run_first = ours([*tracked, *click(LATER, at=OTHER), Propagate()], semantics)[-8:]
    straight = ours([*tracked, unanswered(LATER), Propagate()], semantics)[-8:]

    assert largest_error(straight, run_first) < TOLERANCE


def test_corrections_match_transformers_layers_when_corrected_frames_are_kept() -> None:
    script = [
        *click(0),
        Propagate(),
        *click(LATER, at=OTHER),
        Propagate(),
        Add(3, [1], points=[[(60, 60)]], signs=[[0]]),
        Run(3),
        Propagate(reverse=True),
    ]

    assert largest_error(ours(script), theirs(script, model=MendedHfModel)) < TOLERANCE


def test_a_second_correction_of_a_frame_does_not_read_what_the_first_left_there() -> None:
    twice = [*click(0), Propagate(), *click(LATER, at=OTHER), *click(LATER, at=(60, 60))]

    # Before anything is propagated again transformers has not yet lost the correction.
    assert largest_error(ours(twice), theirs(twice)) < TOLERANCE
    last = [*twice, Propagate()]
    assert largest_error(ours(last), theirs(last, model=MendedHfModel)) < TOLERANCE


@BOTH
def test_a_click_that_replaces_the_first_one_after_tracking_changes_every_frame(
    semantics: str,
) -> None:
    tracked = [*click(0), Propagate()]
    before = last_of_each_frame(ours(tracked, semantics))

    after = last_of_each_frame(ours([*tracked, unanswered(0), Propagate()], semantics))

    assert all(change(after[f], before[f]) > 10 * TOLERANCE for f in before)


def test_clicking_one_object_leaves_the_memory_of_the_others_as_it_was() -> None:
    first = [unanswered(0, 1, DISC), *map(Stream, range(4))]
    rest = [Stream(f) for f in range(4, 8)]
    second_joins = [*first, unanswered(4, 2), *rest]

    alone = theirs([*first, *rest])
    leaked = of_object(theirs(second_joins), 1)

    assert largest_error(leaked, alone) > 10 * TOLERANCE
    assert largest_error(of_object(ours(second_joins), 1), alone) < TOLERANCE


def test_prompts_added_in_two_calls_are_both_answered() -> None:
    two_calls = [unanswered(0, 1, DISC), unanswered(0, 2, OTHER), Run(0), Propagate()]
    with pytest.raises(ValueError):
        theirs(two_calls)

    one_by_one = theirs([*click(0, 1, DISC), *click(0, 2, OTHER), Propagate()])

    assert largest_error(ours(two_calls), one_by_one[1:]) < TOLERANCE


@pytest.mark.parametrize("library", ["theirs", "ours"])
def test_the_callers_list_of_objects_is_emptied_by_transformers_and_not_by_us(
    library: str,
) -> None:
    side = their_side_of([], None, 2) if library == "theirs" else our_side_of(count=2)
    ids = [1, 2]

    side.processor.add_inputs_to_inference_session(
        inference_session=side.session,
        frame_idx=0,
        obj_ids=ids,
        input_points=[[[[40, 30]], [[110, 58]]]],
        input_labels=[[[1], [1]]],
    )
    side.model(inference_session=side.session, frame_idx=0)

    assert ids == ([] if library == "theirs" else [1, 2])


def test_a_prompt_that_waits_on_a_later_frame_does_not_make_earlier_frames_prompts() -> None:
    waits = [*click(0), unanswered(LATER, 2), Propagate()]
    side = their_side_of(waits, None, 8)
    side.play(waits)
    assert list(side.session.output_dict_per_obj[1]["cond_frame_outputs"]) == [*range(LATER + 1)]

    answered = theirs([*click(0), *click(LATER, 2, OTHER), Propagate()])[-8:]

    assert largest_error(ours(waits)[-8:], answered) < TOLERANCE


def test_a_waiting_prompt_does_not_turn_the_pass_of_the_next_object_round() -> None:
    both = [*click(7, 1, DISC), *click(7, 2, OTHER)]
    waits = [*both, unanswered(3, 1), Propagate(start=6, reverse=True)]

    alone = theirs([*click(7, 2, OTHER), Propagate(start=6, reverse=True)])[-7:]

    assert largest_error(of_object(theirs(waits), 2)[-7:], alone) > VISIBLE
    assert largest_error(of_object(ours(waits), 2)[-7:], alone) < TOLERANCE


CLICKS = {
    1: ([DISC], [1]),
    2: ([OTHER, (120, 60), (10, 10)], [1, 1, 0]),
    3: ([(80, 80), DISC], [1, 0]),
}


def _clicks_of(object_ids: Sequence[int]) -> list[Step]:
    points, signs = zip(*(CLICKS[i] for i in object_ids), strict=True)
    return [Add(0, list(object_ids), points=list(points), signs=list(signs)), Run(0), Propagate()]


def test_objects_with_unequal_numbers_of_clicks_in_one_call_do_not_disturb_each_other() -> None:
    together = ours(_clicks_of([1, 2, 3]))
    padded = theirs(_clicks_of([1, 2, 3]))

    for object_id in CLICKS:
        alone = theirs(_clicks_of([object_id]))
        assert largest_error(of_object(together, object_id), alone) < TOLERANCE
    assert largest_error(of_object(padded, 1)[:1], theirs(_clicks_of([1]))[:1]) > VISIBLE
