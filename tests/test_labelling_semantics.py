"""What `semantics="labelling"` does beyond the reference: as Meta's predictor, and two passes."""

from dataclasses import replace

import pytest
import torch
from reference import (
    LabellingHfModel,
    MendedHfModel,
    hf_side,
    rebuilt_as,
    small_hf_model,
    synthetic_frames,
)
from scenarios import DISC, OTHER, TOLERANCE, click, our_model, our_side, rectangle
from script import Add, Propagate, Run, Step, largest_error
from two_sides import LATER, our_side_of, ours, theirs, unanswered

from sam2model.semantics import LABELLING

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
    side = our_side_of("labelling")
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
    side = our_side_of("labelling")
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
