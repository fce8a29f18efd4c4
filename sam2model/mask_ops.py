"""Masks after the model: up-sampling, clean-up, overlaps, areas, boxes, stability. Knows no model.

Logits are before the sigmoid: above 0 is foreground. Every function takes a batch of N masks on any
device and gives a tensor on it, without waiting for the device and without compiled extensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FILLED_LOGIT = 0.1  # just foreground, as Meta's video predictor writes into holes
REMOVED_LOGIT = -0.1
OVERLAPPED_LOGIT = -10.0  # sigmoid 4.5e-5


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, h, w) of any float type at another size (H, W), bilinear: (N, H, W) float32.

    Pixel areas correspond, not corners (align_corners=False), as in both reference programs.
    """
    resized = F.interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)
    return resized[:, 0]


def mask_areas(masks: Tensor) -> Tensor:
    """Set pixels of each mask (N, H, W) bool: (N,) int32."""
    return masks.flatten(1).sum(1, dtype=torch.int32)


def mask_boxes_xyxy(masks: Tensor) -> Tensor:
    """(x0, y0, x1, y1) in pixels, ends exclusive, of masks (N, H, W) bool: (N, 4) int32.

    Zeros for an empty mask.
    """
    pixels = masks.view(torch.uint8)  # amax of bytes is 30 times faster than any() on the host
    x0, x1 = _extent(pixels.amax(1).bool())
    y0, y1 = _extent(pixels.amax(2).bool())
    return torch.stack([x0, y0, x1, y1], dim=1)


def stability_scores(logits: Tensor, delta: float = 1.0) -> Tensor:
    """How little each mask depends on its threshold: (N,) float32 in [0, 1].

    logits: (N, H, W). The area above +delta over the area above -delta, which is the intersection
    over the union of the two masks; 1 when the union is empty: surely nothing is stable too.
    """
    inner = mask_areas(logits > delta)
    outer = mask_areas(logits > -delta)
    return torch.where(outer > 0, inner / outer.clamp(min=1), 1.0)


def fill_holes(logits: Tensor, max_area_px: int) -> Tensor:
    """Logits (N, h, w) with each background component of at most max_area_px set to +0.1.

    Components are 8-connected; one at the image's edge counts as a hole too. An area of 0 changes
    nothing. Time grows with max_area_px, memory does not.
    Source: sam2/utils/misc.py fill_holes_in_mask_scores (8 px at 256×256 there).
    """
    background = logits <= 0
    areas = small_component_areas(background, max_area_px)
    return torch.where(background & (areas <= max_area_px), FILLED_LOGIT, logits)


def remove_sprinkles(logits: Tensor, max_area_px: int) -> Tensor:
    """Logits (N, h, w) with each foreground component of at most max_area_px set to -0.1.

    Components are 8-connected. A mask's largest component always stays, and so do all that equal
    it: an object far away may be no larger than a sprinkle, and clean-up must not lose it.
    Call it after fill_holes, which may join sprinkles to the object.
    """
    foreground = logits > 0
    areas = small_component_areas(foreground, max_area_px)
    largest = areas.amax(dim=(1, 2), keepdim=True)
    sprinkles = foreground & (areas <= max_area_px) & (areas < largest)
    return torch.where(sprinkles, REMOVED_LOGIT, logits)


def suppress_overlaps(logits: Tensor) -> Tensor:
    """Logits (N, H, W) of N objects of one frame, of which at most one is foreground at a pixel.

    The object with the highest logit keeps it, the first of equals; the others get -10 at most.
    Source: apply_non_overlapping_constraints in both reference programs.
    """
    if len(logits) < 2:
        return logits
    objects = torch.arange(len(logits), device=logits.device)[:, None, None]
    is_highest = logits.argmax(dim=0, keepdim=True) == objects
    return torch.where(is_highest, logits, logits.clamp(max=OVERLAPPED_LOGIT))


def small_component_areas(masks: Tensor, max_area_px: int) -> Tensor:
    """At each set pixel the area of its 8-connected component, max_area_px + 1 if larger.

    masks: (N, H, W) bool. Returns (N, H, W) int32, 0 off the mask. Exact for every shape:
    each pixel takes the highest pixel number around it max_area_px - 1 times, which is as far as
    two pixels of a small component can be apart, so a small component ends with one label. A label
    that touches another one belongs to a component not walked to its end, hence to a large one;
    a label that touches none is a whole component, and its pixels are counted.
    """
    if max_area_px < 0:
        raise ValueError(f"max_area_px is {max_area_px}; wanted 0 or more")
    num_masks, height, width = masks.shape
    size_px = height * width
    numbers = torch.arange(1, size_px + 1, dtype=torch.int32, device=masks.device)
    labels = numbers.view(height, width) * masks
    for _ in range(min(max_area_px, size_px) - 1):
        labels = _highest_around(labels) * masks
    opposite = (size_px + 1 - labels) * masks
    touches_another = (_highest_around(labels) * masks != labels) | (
        _highest_around(opposite) * masks != opposite
    )
    # A pixel that touches another label weighs more than a small component can.
    weights = torch.where(touches_another, max_area_px + 1, 1)
    index = labels.flatten(1).long()  # (N, H·W); 0 off the mask
    totals = torch.zeros(num_masks, size_px + 1, dtype=torch.int64, device=masks.device)
    totals = totals.scatter_add(1, index, weights.flatten(1))
    areas = totals.gather(1, index).view_as(masks).clamp(max=max_area_px + 1)
    return (areas * masks).int()


def _highest_around(labels: Tensor) -> Tensor:
    """The highest of each pixel and its 8 neighbours, labels (N, H, W) int32 of 0 or more."""
    padded = F.pad(labels, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    return torch.maximum(torch.maximum(rows[:, :, :-2], rows[:, :, 1:-1]), rows[:, :, 2:])


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First set place and one past the last of (N, L) bool: two (N,) int32; zeros where none is."""
    length = occupied.shape[1]
    places = torch.arange(length, dtype=torch.int32, device=occupied.device)
    end = torch.where(occupied, places + 1, 0).amax(1)
    start = torch.where(occupied, places, length).amin(1)
    return torch.minimum(start, end), end
