"""The unroll with gradients and the engine's stepper give the same masks; gradients reach all."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small_network import SIZE, random_pixels, small_network
from torch import Tensor

from sam2model.attention import force_kernel
from sam2model.semantics import LABELLING
from sam2model.stepper import Ask, ModelPrompt, Stepper
from sam2model.track_step import ImageFeatures, Sam2Network
from workflows.train_losses import Answer
from workflows.train_unroll import (
    BOX,
    CLICK,
    MASK,
    ClipBatch,
    UnrollPlan,
    corrective_clicks,
    unroll,
)

FRAMES = 5
UNCLEANED = replace(LABELLING, hole_area_px=0, sprinkle_area_px=0)


@pytest.fixture(autouse=True)
def one_kernel() -> Iterator[None]:
    force_kernel("plain")
    yield
    force_kernel(None)


@pytest.fixture(scope="module")
def network() -> Sam2Network:
    built: Sam2Network = small_network(
        multimask_output_for_tracking=False,
        mask_decoder_config={
            **{"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
            **{"num_attention_heads": 4, "dynamic_multimask_via_stability": False},
        },
    )
    return built


def batch(kinds: list[int], clips: int = 2) -> ClipBatch:
    generator = torch.Generator().manual_seed(3)
    count = len(kinds)
    target = torch.zeros(count, FRAMES, 16, 16)
    for n in range(count):
        target[n, :, 3 : 8 + n, 4:10] = 1.0
    full = target.repeat_interleave(4, -1).repeat_interleave(4, -2)
    return ClipBatch(
        pixels=torch.randint(
            0, 255, (clips, FRAMES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8
        ),
        clip=torch.arange(count) % clips,
        target=target,
        area_px=full.flatten(2).sum(-1).long(),
        kind=torch.tensor(kinds),
        click=torch.tensor([[20.0, 14.0]]).expand(count, -1),
        box=torch.tensor([[15.0, 11.0, 41.0, 34.0]]).expand(count, -1),
        mask=full[:, 0] > 0.5,
        frame_indices=tuple(range(FRAMES)),
    )


def features(network: Sam2Network, given: ClipBatch) -> ImageFeatures:
    return network.encode_images(random_pixels(given.pixels.shape[0] * FRAMES))


def prompt_of(given: ClipBatch, n: int) -> ModelPrompt:
    kind = int(given.kind[n])
    if kind == CLICK:
        return ModelPrompt(given.click[n : n + 1], torch.tensor([1]))
    if kind == BOX:
        return ModelPrompt(given.box[n].view(2, 2), torch.tensor([2, 3]))
    nothing = torch.empty(0, 2)
    return ModelPrompt(nothing, torch.empty(0, dtype=torch.int64), given.mask[n])


def chosen(answer: Answer, row: int) -> Tensor:
    best = 1 + int(answer.iou[row, 1:].argmax()) if answer.several else 0
    return answer.logits[row, best]


@pytest.mark.parametrize("kinds", [[CLICK, BOX], [MASK, CLICK, CLICK], [BOX, MASK]])
@pytest.mark.parametrize("start", [1, 19])
def test_the_unroll_and_the_engine_give_the_same_masks(
    network: Sam2Network, kinds: list[int], start: int
) -> None:
    given = replace(batch(kinds), frame_indices=(0, *range(start, start + FRAMES - 1)))
    image = features(network, given)

    answers = unroll(network, image, given, UnrollPlan())

    compared = 0
    for n in range(len(kinds)):
        stepper = Stepper(network, UNCLEANED, keep_all=False)
        stepper.bank.add_object(0)
        for frame, index in enumerate(given.frame_indices):
            row = int(given.clip[n]) * FRAMES + frame
            prompt = prompt_of(given, n) if frame == 0 else None
            ask = Ask(0, row, index, prompt=prompt)
            output = (stepper.prompt if frame == 0 else stepper.track)(image, [ask])
            for answer in answers:
                if answer.frame != frame or n not in answer.where.tolist():
                    continue
                mine = answer.where.tolist().index(n)
                assert answer.object_score[mine] == pytest.approx(
                    output.object_score[0].item(), abs=1e-4
                )
                if output.object_score[0] > 0:
                    difference = (chosen(answer, mine) - output.logits[0]).abs().max()
                    assert difference < 1e-3, (n, frame)
                    compared += 1
    assert compared >= FRAMES  # the random weights see most objects


def test_a_correction_is_what_the_engine_makes_of_the_same_click(network: Sam2Network) -> None:
    given = batch([CLICK])
    image = features(network, given)
    plan = UnrollPlan(corrected=(2,), seed=4)

    answers = unroll(network, image, given, plan)

    tracked, corrected = [a for a in answers if a.frame == 2]
    point, label = corrective_clicks(
        chosen(tracked, 0)[None], given.target[:, 2], 4, torch.Generator().manual_seed(4)
    )
    stepper = Stepper(network, UNCLEANED, keep_all=False)
    stepper.bank.add_object(0)
    stepper.prompt(image, [Ask(0, 0, 0, prompt=prompt_of(given, 0))])
    stepper.track(image, [Ask(0, 1, 1)])
    click = ModelPrompt(point, label)
    output = stepper.correct(image, [Ask(0, 2, 2, prompt=click)])
    assert (corrected.logits[0, 0] - output.logits[0]).abs().max() < 1e-3
    after = stepper.track(image, [Ask(0, 3, 3)])
    later = next(a for a in answers if a.frame == 3)
    assert (chosen(later, 0) - after.logits[0]).abs().max() < 1e-3


def test_a_corrective_click_falls_on_a_wrong_pixel_and_says_what_is_right() -> None:
    logits, target = torch.full((2, 16, 16), -5.0), torch.zeros(2, 16, 16)
    logits[0, 2, 3] = 5.0  # too much
    target[1, 9, 12] = 1.0  # too little
    points, labels = corrective_clicks(logits, target, 4, torch.Generator().manual_seed(0))
    assert labels.tolist() == [0, 1]
    cells = ((points + 0.5) // 4).tolist()
    assert cells == [[3.0, 2.0], [12.0, 9.0]]


def test_gradients_reach_every_weight_that_tracking_uses() -> None:
    network = small_network().requires_grad_(True).train()
    given = batch([CLICK, BOX, MASK])
    given.area_px[0, 1] = 0  # out of sight there, and remembered so
    plan = UnrollPlan(rounds=1, corrected=(2,), trust_scores=False, seed=1)
    answers = unroll(network, features(network, given), given, plan)
    total = sum((a.logits**2).mean() + a.iou.mean() + a.object_score.mean() for a in answers)
    assert isinstance(total, Tensor)
    total.backward()
    without = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"no_memory_positional_encoding"}
