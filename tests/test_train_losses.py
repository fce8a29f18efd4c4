"""Training losses equal their formulas, written out pixel by pixel."""

import math

import pytest
import torch

from workflows.train_losses import (
    Answer,
    LossWeights,
    answer_losses,
    dice_loss,
    focal_loss,
    mask_iou,
)

LOGITS = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
TARGET = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_focal_loss_is_the_published_formula() -> None:
    expected = 0.0
    for logit, truth in zip(LOGITS.flatten().tolist(), TARGET.flatten().tolist(), strict=True):
        p = sigmoid(logit)
        p_t, alpha_t = (p, 0.25) if truth == 1 else (1 - p, 0.75)
        expected += alpha_t * (1 - p_t) ** 2 * -math.log(p_t) / 4
    assert focal_loss(LOGITS, TARGET, 0.25, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_dice_loss_is_the_published_formula() -> None:
    p = [sigmoid(x) for x in LOGITS.flatten().tolist()]
    expected = 1 - (2 * (p[0] + p[3]) + 1) / (sum(p) + 2 + 1)
    assert dice_loss(LOGITS, TARGET).item() == pytest.approx(expected, rel=1e-5)


def test_covered_shares_are_learnt_as_chances() -> None:
    share, logit = torch.tensor([[0.3]]), torch.tensor([[0.0]], requires_grad=True)
    optimiser = torch.optim.SGD([logit], lr=50.0)
    for _ in range(200):
        optimiser.zero_grad()
        focal_loss(logit, share, 0.5, 2.0).backward()
        optimiser.step()
    assert logit.sigmoid().item() == pytest.approx(0.3, abs=0.03)


def test_iou_counts_pixels_and_two_empty_masks_agree() -> None:
    assert mask_iou(LOGITS, TARGET).item() == pytest.approx(1 / 3)
    assert mask_iou(torch.full((2, 2), -1.0), torch.zeros(2, 2)).item() == 1.0


def answer(several: bool) -> Answer:
    generator = torch.Generator().manual_seed(1)
    return Answer(
        frame=0,
        where=torch.arange(2),
        logits=3 * torch.randn((2, 4, 4, 4), generator=generator),
        iou=torch.rand((2, 4), generator=generator),
        object_score=torch.tensor([1.5, -0.5]),
        several=several,
    )


def test_of_the_ambiguous_masks_only_the_best_is_taught_its_mask() -> None:
    given, weights = answer(several=True), LossWeights()
    target = (torch.arange(32).view(2, 4, 4) % 3 == 0).float()
    both = torch.tensor([True, True])

    losses = answer_losses(given, target, both, both, weights)

    focal = focal_loss(given.logits, target[:, None], 0.25, 2.0)
    dice = dice_loss(given.logits, target[:, None])
    costs = 20 * focal + dice
    best = [1 + costs[n, 1:].argmin().item() for n in range(2)]
    expected_dice = sum((dice[n, 0] + dice[n, best[n]]).item() for n in range(2)) / 2
    expected_focal = sum((focal[n, 0] + focal[n, best[n]]).item() for n in range(2)) / 2
    off = (given.iou - mask_iou(given.logits, target[:, None])).abs().mean().item()
    entropy = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(0.5))) / 2
    assert losses.dice.item() == pytest.approx(expected_dice, rel=1e-5)
    assert losses.focal.item() == pytest.approx(expected_focal, rel=1e-5)
    assert losses.iou.item() == pytest.approx(off, rel=1e-5)
    assert losses.object_score.item() == pytest.approx(entropy, rel=1e-5)
    total = 20 * expected_focal + expected_dice + off + entropy
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def test_an_absent_object_is_taught_its_absence_and_no_mask() -> None:
    given = answer(several=False)
    target = torch.stack((torch.eye(4), torch.zeros(4, 4)))
    present, certain = torch.tensor([True, False]), torch.tensor([True, True])

    losses = answer_losses(given, target, present, certain, LossWeights())

    alone = answer_losses(
        Answer(
            0, torch.arange(1), *(x[:1] for x in (given.logits, given.iou)), torch.ones(1), False
        ),
        *(target[:1], present[:1], certain[:1], LossWeights()),
    )
    assert torch.equal(losses.dice, alone.dice) and torch.equal(losses.focal, alone.focal)
    assert torch.equal(losses.iou, alone.iou)
    entropy = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(-0.5))) / 2
    assert losses.object_score.item() == pytest.approx(entropy, rel=1e-5)


def test_a_sliver_does_not_teach_whether_the_object_is_there() -> None:
    given = answer(several=False)
    target, both = torch.ones(2, 4, 4), torch.tensor([True, True])
    losses = answer_losses(given, target, both, torch.tensor([True, False]), LossWeights())
    assert losses.object_score.item() == pytest.approx(math.log(1 + math.exp(-1.5)), rel=1e-5)
