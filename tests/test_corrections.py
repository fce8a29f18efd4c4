"""What goes wrong in transformers 5.23 when a person corrects or adds objects, and not in ours.

Each defect is shown in transformers first, then its absence in ours. Where transformers has no
sound answer, its own layers give one: one object alone, or `MendedHfModel`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from reference import (
    Add,
    Emission,
    LabellingHfModel,
    MendedHfModel,
    Propagate,
    Run,
    Side,
    Step,
    Stream,
    hf_side,
    largest_error,
    last_of_each_frame,
    of_object,
    rebuilt_as,
    small_hf_model,
    synthetic_frames,
)
from scenarios import DISC, OTHER, TOLERANCE, click, our_model, our_side, rectangle

import sam2model
from sam2model.semantics import LABELLING

BOTH = pytest.mark.parametrize("semantics", ["reference", "labelling"])
VISIBLE = 100 * TOLERANCE  # a change that a user would see
LATER = 5  # a frame that has been tracked when it is corrected


def theirs(script: Sequence[Step], *, model: type | None = None, count: int = 8) -> list[Emission]:
    """What transformers says, as it is or mended."""
    return _their_side(script, model, count).play(script)


def _their_side(script: Sequence[Step], model: type | None, count: int) -> Side:
    streaming = any(isinstance(step, Stream) for step in script)
    return hf_side(_their_model(model), synthetic_frames(count), streaming=streaming)


@cache
def _their_model(model: type | None) -> Any:
    return small_hf_model() if model is None else rebuilt_as(model, small_hf_model())


def ours(script: Sequence[Step], semantics: object = "reference", count: int = 8) -> list[Emission]:
    """What our model says."""
    streaming = any(isinstance(step, Stream) for step in script)
    side = _our_side(semantics, count, streaming=streaming)
    return side.play(script)


def _our_side(semantics: object = "reference", count: int = 8, *, streaming: bool = False) -> Side:
    model = our_model(small_hf_model(), semantics)
    return our_side(model, synthetic_frames(count), streaming=streaming)


def change(after: Emission, before: Emission, object_id: int = 1) -> float:
    """How far one object's logits moved, of the largest before."""
    return largest_error(of_object([after], object_id), of_object([before], object_id))


def unanswered(frame: int, object_id: int = 1, at: tuple[float, float] = OTHER) -> Add:
    """A click that is added and not run."""
    return Add(frame, [object_id], points=[[at]], signs=[[1]])


# A click on a frame that is already tracked.


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
    side = _our_side(semantics)

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


# Several objects.


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
    side = _their_side([], None, 2) if library == "theirs" else _our_side(count=2)
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
    side = _their_side(waits, None, 8)
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


@BOTH
def test_an_objects_masks_do_not_depend_on_who_shares_its_steps(semantics: str) -> None:
    scripts: dict[int, list[Step]] = {
        1: click(0, 1, DISC),
        2: [Add(0, [2], boxes=[(80, 30, 140, 90)]), Run(0)],
        3: [Add(2, [3], masks=[rectangle(slice(20, 60), slice(70, 120))]), Run(2)],
        4: click(2, 4, (20, 80)),
        5: [Add(0, [5], points=[[OTHER, (120, 60), (10, 10)]], signs=[[1, 1, 0]]), Run(0)],
    }

    together = ours(
        [*(s for part in scripts.values() for s in part), Propagate(start=0)], semantics
    )

    for object_id, part in scripts.items():
        alone = ours([*part, Propagate(start=0)], semantics)
        got = last_of_each_frame(of_object(together, object_id))
        wanted = last_of_each_frame(alone)
        for frame, emission in got.items():
            if object_id in wanted[frame].logits:
                assert change(emission, wanted[frame], object_id) < TOLERANCE / 5, frame


def test_masks_do_not_depend_on_how_many_objects_a_step_takes() -> None:
    script = [
        *click(0, 1, DISC),
        Add(0, [2], boxes=[(80, 30, 140, 90)]),
        Add(2, [3], masks=[rectangle(slice(20, 60), slice(70, 120))]),
        *click(2, 4, (20, 80)),
        Propagate(),
    ]
    one_at_a_time = sam2model.Sam2VideoModel(our_model(small_hf_model()).config, slots=1)
    one_at_a_time.load_state_dict(small_hf_model().state_dict())

    got = our_side(one_at_a_time, synthetic_frames(8)).play(script)

    assert largest_error(got, ours(script)) < TOLERANCE


# Objects that come and go while a session lives.


@BOTH
def test_removing_an_object_does_not_change_the_others(semantics: str) -> None:
    start = [*click(0, 1, DISC), *click(0, 2, OTHER), *click(0, 3, (20, 80)), Propagate(count=3)]
    side = _our_side(semantics)
    side.play(start)

    side.session.remove_object(2)
    rest = side.play([Propagate(start=4)])

    assert side.session.obj_ids == [1, 3]
    assert [list(e.logits) for e in rest] == [[1, 3]] * 4
    kept = ours([*start, Propagate(start=4)], semantics)[-4:]
    for object_id in (1, 3):
        error = largest_error(of_object(rest, object_id), of_object(kept, object_id))
        assert error < TOLERANCE


@BOTH
def test_an_object_added_in_mid_track_is_as_if_it_were_alone(semantics: str) -> None:
    start = [*click(0, 1, DISC), Propagate(count=LATER - 1)]

    joined = ours([*start, unanswered(LATER, 2), Propagate(start=LATER)], semantics)

    alone = ours([unanswered(LATER, 2), Propagate(start=LATER)], semantics)
    assert largest_error(of_object(joined, 2), alone) < TOLERANCE
    unjoined = ours([*start, Propagate(start=LATER)], semantics)
    assert largest_error(of_object(joined, 1), unjoined) < TOLERANCE


def test_an_object_removed_and_added_again_starts_anew() -> None:
    side = _our_side()
    side.play([*click(0, 1, OTHER), Propagate()])

    side.session.remove_object(1)
    again = side.play([*click(2, 1, DISC), Propagate()])

    assert largest_error(again, ours([*click(2, 1, DISC), Propagate()])) < TOLERANCE


def test_a_removed_object_gives_its_memories_back() -> None:
    side = _our_side()
    side.play([*click(0, 1, DISC), Propagate()])
    bank = side.session.stepper.bank
    alone = bank.mask_pages_in_use
    side.play([*click(0, 2, OTHER), Propagate()])
    assert bank.mask_pages_in_use == 2 * alone > 0

    side.session.remove_object(2)

    assert bank.mask_pages_in_use == alone


def test_removing_an_object_that_is_not_there_names_those_that_are() -> None:
    side = _our_side()
    side.play(click(0, 4, DISC))

    with pytest.raises(sam2model.SessionError, match=r"object 9.*\[4\]"):
        side.session.remove_object(9)


# What labelling does beyond the reference.

UNCLEANED = replace(LABELLING, hole_area_px=0, sprinkle_area_px=0)


@pytest.mark.parametrize(
    "script",
    [
        [
            *click(0),
            Add(0, [1], points=[[(60, 60)]], signs=[[0]], clear=False),
            Run(0),
            Propagate(),
        ],
        [*click(0), Propagate(), *click(LATER, at=OTHER), Propagate()],
        [*click(0), Propagate(), *click(LATER, at=OTHER), *click(LATER, at=(60, 60)), Propagate()],
        [
            Add(0, [1], masks=[rectangle(slice(20, 60), slice(70, 120))]),
            Run(0),
            Propagate(),
        ],
    ],
    ids=["second click", "click on a tracked frame", "two clicks on a tracked frame", "mask"],
)
def test_labelling_answers_prompts_as_metas_predictor_does(script: list[Step]) -> None:
    metas = theirs(script, model=LabellingHfModel)

    assert largest_error(ours(script, UNCLEANED), metas) < TOLERANCE
    plain = theirs(script, model=MendedHfModel)
    assert largest_error(plain, metas) > 10 * TOLERANCE  # so it is a difference that counts


@pytest.mark.parametrize(
    ("tracked_backwards", "answer"),
    [
        (True, Run(4)),
        (True, Propagate(start=4, count=0)),
        (False, Propagate(start=4, count=0, reverse=True)),
    ],
    ids=["backwards, run", "backwards, answered forwards", "forwards, answered backwards"],
)
def test_labelling_reads_a_correction_in_the_direction_in_which_its_frame_was_tracked(
    tracked_backwards: bool, answer: Step
) -> None:
    tracked = [*click(7 if tracked_backwards else 0), Propagate(reverse=tracked_backwards)]
    correction = unanswered(4)

    metas = theirs([*tracked, correction, Run(4, tracked_backwards)], model=LabellingHfModel)
    got = ours([*tracked, correction, answer], UNCLEANED)

    assert largest_error(got[-1:], metas[-1:]) < TOLERANCE


def test_labelling_leaves_the_frames_after_an_objects_first_prompt_to_the_forward_pass() -> None:
    side = _our_side("labelling")
    side.play([*click(0, 1, DISC), Propagate(), *click(LATER, 1, OTHER), *click(LATER, 2, OTHER)])

    backward = {e.frame: list(e.logits) for e in side.play([Propagate(reverse=True)])}

    assert {f: ids for f, ids in backward.items() if 0 < f < LATER} == {f: [2] for f in range(1, 5)}


def test_labelling_feeds_back_no_logit_beyond_32() -> None:
    loud = rebuilt_as(LabellingHfModel, small_hf_model())
    for head in loud.mask_decoder.output_hypernetworks_mlps:
        head.proj_out.weight.mul_(8)
    frames = synthetic_frames(1)
    script = [*click(0), *click(0, at=OTHER)]

    metas = hf_side(loud, frames).play(script)

    assert metas[0].logits[1].abs().max() > 64
    assert (
        largest_error(our_side(our_model(loud, UNCLEANED), frames).play(script), metas) < TOLERANCE
    )


def test_labelling_leaves_the_frames_before_an_objects_first_prompt_to_the_backward_pass() -> None:
    prompts = [*click(0, 1, DISC), *click(LATER, 2, OTHER)]
    side = _our_side("labelling")
    side.play(prompts)

    forward = {e.frame: list(e.logits) for e in side.play([Propagate()])}
    backward = {e.frame: list(e.logits) for e in side.play([Propagate(reverse=True)])}

    assert forward == {f: [1] if f < LATER else [1, 2] for f in range(8)}
    assert {f: ids for f, ids in backward.items() if 0 < f < LATER} == {f: [2] for f in range(1, 5)}
    assert 2 in backward[0]


def test_labelling_backwards_after_forwards_equals_backwards_alone() -> None:
    prompt = [*click(4, 1, DISC), *click(4, 2, OTHER)]

    after = ours([*prompt, Propagate(), Propagate(reverse=True)], "labelling")[-5:]
    alone = ours([*prompt, Propagate(reverse=True)], "labelling")[-5:]

    assert [e.frame for e in after] == [4, 3, 2, 1, 0]
    assert largest_error(after, alone) == 0
    shared = [*click(4), Propagate(), Propagate(reverse=True)]
    single = [*click(4), Propagate(reverse=True)]
    assert largest_error(theirs(shared)[-5:], theirs(single)[-5:]) > 10 * TOLERANCE


def test_labelling_cleans_masks_of_holes_and_sprinkles() -> None:
    script = [*click(0), Propagate()]

    cleaned, raw = ours(script, "labelling"), ours(script, UNCLEANED)

    pairs = zip(cleaned, raw, strict=True)
    assert any(bool(((a.logits[1] > 0) != (b.logits[1] > 0)).any()) for a, b in pairs)
    for emission in cleaned:
        assert _smallest_part(emission.logits[1] > 0) > LABELLING.sprinkle_area_px


def _smallest_part(mask: torch.Tensor) -> int:
    """Pixels of the smallest 8-connected part of a mask; of an empty one, its whole area."""
    seen = torch.zeros_like(mask)
    sizes = []
    for row, column in mask.nonzero().tolist():
        if seen[row, column]:
            continue
        part, edge = 0, [(row, column)]
        seen[row, column] = True
        while edge:
            r, c = edge.pop()
            part += 1
            for y in range(max(r - 1, 0), min(r + 2, mask.shape[0])):
                for x in range(max(c - 1, 0), min(c + 2, mask.shape[1])):
                    if mask[y, x] and not seen[y, x]:
                        seen[y, x] = True
                        edge.append((y, x))
        sizes.append(part)
    return min(sizes, default=mask.numel())
