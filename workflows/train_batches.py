"""Clips to batches: which objects are followed, how they are prompted, how pictures vary.

Knows nothing of networks. A batch is decided by the seed and the number of its step alone, so
that a run that is taken up again sees what it would have seen.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from workflows.train_clips import ClipSource
from workflows.train_scenes import FIRST_STILL, Clip
from workflows.train_unroll import BOX, CLICK, MASK, ClipBatch

ABSENCE_TRIES = 8  # clips looked through for one in which an object goes out of sight


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How much a step sees.

    clips, frames: of the batch; objects: followed in a clip at most; kinds: chances of a click,
    a box and a mask; min_area_px: of an object on its first frame; size: model pixels a side;
    cell_px: pixels of one cell of the mask logits; vary: whether pictures are cut, mirrored and
    recoloured; box_jitter: of its sides, that a box is off; absence: chance that a clip is looked
    for in which an object goes out of sight; still: chance of each thing that lies on the ground to
    be among those that are chosen from; prompts_each: prompts of its own that each object gets.
    """

    clips: int
    frames: int
    objects: int
    kinds: tuple[float, float, float]
    min_area_px: int
    size: int
    cell_px: int = 4
    vary: bool = True
    box_jitter: float = 0.1
    absence: float = 0.0
    still: float = 1.0
    prompts_each: int = 1


def make_batch(source: ClipSource, shape: BatchShape, seed: int, step: int) -> ClipBatch:
    """The batch of a step."""
    rng = np.random.default_rng([seed, step])
    parts: list[_Followed] = []
    pixels: list[Tensor] = []
    while len(pixels) < shape.clips:
        tries = ABSENCE_TRIES if shape.absence and rng.random() < shape.absence else 1
        for attempt in range(tries):
            clip = source.clip(int(rng.integers(len(source))))
            images, labels = _view(_cut(clip, shape.frames, rng), shape, rng)
            followed = _follow(labels, len(pixels), shape, rng)
            if followed is not None and (attempt + 1 == tries or not followed.area_px.all()):
                break
        if followed is not None:  # a clip may begin with nothing large enough in sight
            pixels.append(images)
            parts.append(followed)
    names = _Followed.__slots__
    joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    indices = list(range(shape.frames))
    if shape.frames > 1 and rng.random() < 0.4:  # the prompt may lie further back
        gap = int(rng.integers(1, 22))
        indices = [0] + [gap + n for n in range(1, shape.frames)]
    return ClipBatch(pixels=torch.stack(pixels), frame_indices=tuple(indices), **joined)


@dataclass(frozen=True, slots=True)
class _Followed:
    """The objects of one clip, as in ClipBatch."""

    clip: Tensor
    target: Tensor
    area_px: Tensor
    kind: Tensor
    click: Tensor
    box: Tensor
    mask: Tensor


def _cut(clip: Clip, frames: int, rng: np.random.Generator) -> Clip:
    """Some consecutive frames, forward or backward."""
    start = int(rng.integers(len(clip.frames) - frames + 1))
    order = slice(start, start + frames)
    cut = Clip(clip.frames[order], clip.labels[order], clip.times[order])
    if frames > 1 and rng.random() < 0.5:
        return Clip(cut.frames[::-1], cut.labels[::-1], cut.times)
    return cut


def _view(clip: Clip, shape: BatchShape, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Frames (T, 3, S, S) uint8 and labels (T, S, S), cut out, mirrored and recoloured."""
    images = torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.ascontiguousarray(clip.labels)).unsqueeze(1)
    if shape.vary and rng.random() < 0.5:
        rows, columns = labels.shape[-2:]
        height = int(rows * rng.uniform(0.55, 1))
        width = int(columns * rng.uniform(0.55, 1))
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        images = images[..., top : top + height, left : left + width]
        labels = labels[..., top : top + height, left : left + width]
    size = (shape.size, shape.size)
    if tuple(labels.shape[-2:]) != size:
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        labels = F.interpolate(labels, size=size, mode="nearest-exact")
    if shape.vary:
        flips = [axis for axis in (-1, -2) if rng.random() < (0.5 if axis == -1 else 0.2)]
        if flips:
            images, labels = images.flip(flips), labels.flip(flips)
        images = images[:, torch.from_numpy(rng.permutation(3))] if rng.random() < 0.5 else images
        if rng.random() < 0.5:
            gain, lift = rng.uniform(0.6, 1.4), rng.uniform(-30, 30)
            levels = torch.arange(256, dtype=torch.float32) * gain + lift
            images = levels.clamp(0, 255).to(torch.uint8)[images.int()]
    return images.contiguous(), labels.squeeze(1)


def _follow(
    labels: Tensor, clip: int, shape: BatchShape, rng: np.random.Generator
) -> _Followed | None:
    """Choose objects of the first frame and prompt them; None if there is none."""
    first = labels[0].numpy()
    areas = np.bincount(first.ravel(), minlength=256)
    ids = [i for i in range(1, 256) if areas[i] >= shape.min_area_px]
    if shape.still < 1:
        ids = [i for i in ids if i < FIRST_STILL or rng.random() < shape.still]
    if not ids:
        return None
    chosen = np.tile(rng.permutation(ids), shape.prompts_each)[: shape.objects]
    masks = labels[None] == torch.from_numpy(chosen)[:, None, None, None]
    clicks = np.stack([_point_in(masks[n, 0].numpy(), rng) for n in range(len(chosen))])
    boxes = np.stack(
        [_box_round(masks[n, 0].numpy(), shape.box_jitter, rng) for n in range(len(chosen))]
    )
    kinds = rng.choice([CLICK, BOX, MASK], size=len(chosen), p=shape.kinds)
    return _Followed(
        clip=torch.full((len(chosen),), clip, dtype=torch.int64),
        target=F.avg_pool2d(masks.float(), shape.cell_px),
        area_px=masks.sum(dim=(2, 3)),
        kind=torch.from_numpy(kinds),
        click=torch.from_numpy(clicks),
        box=torch.from_numpy(boxes),
        mask=masks[:, 0].clone(),
    )


Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


def _point_in(mask: Mask, rng: np.random.Generator) -> Floats:
    """Any pixel of a mask, x then y."""
    pixels = np.flatnonzero(mask)
    y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return np.array([x, y], dtype=np.float32)


def box_of(mask: Mask) -> Floats:
    """(x0, y0, x1, y1) of a mask in pixels, ends exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def _box_round(mask: Mask, jitter: float, rng: np.random.Generator) -> Floats:
    """The box of a mask as a person draws it: each side off by a share of the box."""
    box = box_of(mask)
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    off = np.clip(rng.normal(0, jitter, 4), -2 * jitter, 2 * jitter) * sides
    size = np.array([mask.shape[1], mask.shape[0]] * 2)
    drawn: Floats = np.clip(box + off, 0, size).astype(np.float32)
    return drawn
