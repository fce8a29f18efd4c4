"""What a wrong mask costs: focal, dice, IoU and object score losses, as the SAM 2 paper adds them.

Knows nothing of networks or videos. Targets may be the covered shares of coarse pixels, in
[0, 1]; for targets of 0 and 1 every formula is the published one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How much each part counts (SAM 2, arXiv 2408.00714, section D.2.1: 20, 1, 1, 1)."""

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    object_score: float = 1.0
    focal_alpha: float = 0.25  # of foreground pixels; 1 - alpha of the others
    focal_gamma: float = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a network said of some objects on one frame, before one of its masks was chosen.

    where: (N,) the objects' rows in the batch; logits: (N, masks, h, w); iou: (N, masks);
    object_score: (N,); several: whether the ambiguous masks 1… count, beside the single mask 0.
    """

    frame: int
    where: Tensor
    logits: Tensor
    iou: Tensor
    object_score: Tensor
    several: bool


@dataclass(frozen=True, slots=True)
class Losses:
    """Each part before its weight, and the weighted total; all scalars."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    object_score: Tensor


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Mean over pixels (…, h, w) → (…,): α_t · |p - t|^γ · cross-entropy."""
    target = target.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    distance = (logits.sigmoid() - target).abs()
    balance = alpha * target + (1 - alpha) * (1 - target)
    return (balance * distance**gamma * entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 Σ p·t + 1) / (Σ p + Σ t + 1) over pixels: (…, h, w) → (…,)."""
    chance = logits.sigmoid()
    overlap = (chance * target).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (chance.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Overlap over union of the thresholded masks, (…, h, w) → (…,); 1 where both are empty."""
    inside, truth = logits > 0, target > 0.5
    overlap = (inside & truth).sum(dim=(-2, -1))
    union = (inside | truth).sum(dim=(-2, -1))
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def answer_losses(
    answer: Answer, target: Tensor, present: Tensor, certain: Tensor, weights: LossWeights
) -> Losses:
    """The losses of one frame, averaged over the objects that they apply to.

    target: (N, h, w) covered shares; present: (N,) bool, whether the mask can be judged; certain:
    (N,) bool, whether it is clear if the object is in the frame. Of the ambiguous masks only the
    one with the least loss is taught its mask; all are taught their IoU.
    """
    truth = target.unsqueeze(1)
    focal = focal_loss(answer.logits, truth, weights.focal_alpha, weights.focal_gamma)
    dice = dice_loss(answer.logits, truth)
    mask = weights.focal * focal + weights.dice * dice  # (N, masks)
    off = (answer.iou - mask_iou(answer.logits.detach(), truth)).abs()

    best = mask.detach()[:, 1:].argmin(dim=1, keepdim=True)

    def taught(values: Tensor) -> Tensor:
        """The single mask's value, plus the best of the ambiguous where they count: (N,)."""
        if not answer.several:
            return values[:, 0]
        return values[:, 0] + values[:, 1:].gather(1, best).squeeze(1)

    judged = present.float()
    count = judged.sum().clamp(min=1)
    focal_mean, dice_mean = (
        (judged * taught(focal)).sum() / count,
        (judged * taught(dice)).sum() / count,
    )
    iou_mean = (judged * (off.mean(dim=1) if answer.several else off[:, 0])).sum() / count
    entropy = F.binary_cross_entropy_with_logits(answer.object_score, judged, reduction="none")
    sure = certain.float()
    score_mean = (sure * entropy).sum() / sure.sum().clamp(min=1)
    total = (
        weights.focal * focal_mean
        + weights.dice * dice_mean
        + weights.iou * iou_mean
        + weights.object_score * score_mean
    )
    return Losses(total, focal_mean, dice_mean, iou_mean, score_mean)
