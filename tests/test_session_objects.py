"""Objects of one session come, go and share steps without touching each other's masks."""

import pytest
from reference import small_hf_model, synthetic_frames
from scenarios import DISC, OTHER, TOLERANCE, click, our_model, our_side, rectangle
from script import Add, Propagate, Run, Step, largest_error, last_of_each_frame, of_object
from two_sides import BOTH, LATER, change, our_side_of, ours, unanswered

import sam2model


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


@BOTH
def test_removing_an_object_does_not_change_the_others(semantics: str) -> None:
    start = [*click(0, 1, DISC), *click(0, 2, OTHER), *click(0, 3, (20, 80)), Propagate(count=3)]
    side = our_side_of(semantics)
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
    side = our_side_of()
    side.play([*click(0, 1, OTHER), Propagate()])

    side.session.remove_object(1)
    again = side.play([*click(2, 1, DISC), Propagate()])

    assert largest_error(again, ours([*click(2, 1, DISC), Propagate()])) < TOLERANCE


def test_a_removed_object_gives_its_memories_back() -> None:
    side = our_side_of()
    side.play([*click(0, 1, DISC), Propagate()])
    bank = side.session.stepper.bank
    alone = bank.mask_pages_in_use
    side.play([*click(0, 2, OTHER), Propagate()])
    assert bank.mask_pages_in_use == 2 * alone > 0

    side.session.remove_object(2)

    assert bank.mask_pages_in_use == alone


def test_removing_an_object_that_is_not_there_names_those_that_are() -> None:
    side = our_side_of()
    side.play(click(0, 4, DISC))

    with pytest.raises(sam2model.SessionError, match=r"object 9.*\[4\]"):
        side.session.remove_object(9)
