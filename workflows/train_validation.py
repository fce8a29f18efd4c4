"""How well weights do on clips that they were not trained on. Knows nothing of optimisers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam2model import Sam2VideoModel, Sam2VideoProcessor
from sam2model.mask_ops import upsample_logits
from sam2model.track_step import Sam2Network
from workflows.mask_metrics import Mask, region_similarity, score_pair
from workflows.train_batches import BatchShape, box_of, make_batch
from workflows.train_clips import ClipSource
from workflows.train_losses import mask_iou
from workflows.train_scenes import Clip, clip_of_seed, moving_objects
from workflows.train_unroll import UnrollPlan, normalised_frames, unroll

Masks = npt.NDArray[np.bool_]  # (N, H, W)
Floats = npt.NDArray[np.float32]


@torch.no_grad()
def check_prompts(network: Sam2Network, source: ClipSource, frames: int = 6) -> dict[str, float]:
    """Mean IoU at the size of the logits: after a click, a box, a further click, and later.

    Of moving objects only, with exact boxes, as `score_held_out` has them. The ambiguous masks'
    choice is the network's own. Also how often presence is told rightly.
    """
    size = network.config.image_size
    cell = size // network.config.mask_size[0]
    sums: dict[str, list[float]] = {}
    for name, kinds in (("click", (1.0, 0.0, 0.0)), ("box", (0.0, 1.0, 0.0))):
        shape = BatchShape(
            16, frames, 3, kinds, 64, size, cell, vary=False, box_jitter=0.0, still=0.0
        )
        for step in range(1):
            batch = make_batch(source, shape, 5, step)
            image = network.encode_images(normalised_frames(batch))
            for answer in unroll(network, image, batch, UnrollPlan(rounds=0, seed=step)):
                area = batch.area_px[answer.where, answer.frame]
                target = batch.target[answer.where, answer.frame].unsqueeze(1)
                iou = mask_iou(answer.logits, target)
                rows = torch.arange(len(iou))
                best = 1 + answer.iou[:, 1:].argmax(dim=1) if answer.several else 0 * rows
                key = name if answer.frame == 0 else f"{name}_later"
                sums.setdefault(key, []).extend(iou[rows, best][area > 0].tolist())
                sums.setdefault(f"{key}_single", []).extend(iou[:, 0][area > 0].tolist())
                if answer.frame > 0:
                    told = (answer.object_score > 0) == (area > 0)
                    sums.setdefault("presence_absent", []).extend(told[area == 0].tolist())
                    sums.setdefault("presence_present", []).extend(told[area > 0].tolist())
    return {key: round(sum(v) / max(len(v), 1), 4) for key, v in sorted(sums.items())}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The scenes that scores are published for: never trained on, of every difficulty."""

    first_seed: int = 2_000_000
    num_frames: int = 24
    height: int = 240
    width: int = 320
    least_share: float = 0.001  # of the frame, of an object that is prompted

    def scene(self, seed: int) -> tuple[Clip, list[int]]:
        """The frames of a seed, and the moving objects that are prompted on the first."""
        times = [float(t) for t in range(self.num_frames)]
        clip = clip_of_seed(seed, times, self.height, self.width)
        least_px = self.least_share * self.height * self.width
        return clip, moving_objects(clip.labels[0], least_px)


def score_held_out(
    checkpoint: str | Path, numbers: Iterable[int], held_out: HeldOut = HeldOut()
) -> dict[str, float]:
    """J&F after one click on frame 0, J of a box there, and how well absence is told.

    numbers: of the scenes, counted from the first held-out seed. Every moving object that fills
    `least_share` of frame 0 is prompted, with its innermost pixel or with its exact box. J&F is
    the mean over objects of the mean over all frames after the first, as the tracker of labelling
    jobs gives them; a frame without the object scores 1 where no mask is given and 0 otherwise.
    The AUROC is that of the object score over all those frames, of the objects that are out of
    sight on some of them.
    """
    model = Sam2VideoModel.from_pretrained(checkpoint, semantics="labelling")
    processor = Sam2VideoProcessor.from_pretrained(checkpoint)
    j_and_f: list[float] = []
    j_means: list[float] = []
    box_j: list[float] = []
    click_j: list[float] = []
    scores: list[float] = []
    present: list[bool] = []
    for number in numbers:
        clip, objects = held_out.scene(held_out.first_seed + number)
        if not objects:
            continue
        first = [clip.labels[0] == i for i in objects]
        boxes = masks_of(model, processor, clip, objects, boxes=[box_of(m) for m in first], last=0)
        box_j += [region_similarity(boxes[0][0][n], m) for n, m in enumerate(first)]
        clicks = [innermost(m) for m in first]
        frames = masks_of(model, processor, clip, objects, clicks=clicks)
        click_j += [region_similarity(frames[0][0][n], m) for n, m in enumerate(first)]
        for n, object_id in enumerate(objects):
            truth = clip.labels == object_id
            pairs = [score_pair(masks[n], truth[t]) for t, (masks, _) in enumerate(frames) if t]
            j_means.append(float(np.mean([pair.j for pair in pairs])))
            j_and_f.append(float(np.mean([(pair.j + pair.f) / 2 for pair in pairs])))
            seen = [bool(truth[t].any()) for t in range(1, len(frames))]
            if not all(seen):
                present += seen
                scores += [float(frames[t][1][n]) for t in range(1, len(frames))]
    return {
        "objects": len(j_and_f),
        "j_and_f": float(np.mean(j_and_f)),
        "j": float(np.mean(j_means)),
        "j_first_frame_click": float(np.mean(click_j)),
        "j_first_frame_box": float(np.mean(box_j)),
        "presence_auroc": auroc(scores, present),
        "frames_absent": present.count(False),
    }


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The chance that a positive scores above a negative, ties counting one half.

    NaN where there are none of either.
    """
    values, flags = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    num_positive, num_negative = int(flags.sum()), int((~flags).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # mean rank from 1
    above = rank[flags].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def innermost(mask: Mask) -> tuple[float, float]:
    """The pixel of a mask that erosion takes last, x then y; the image's edge erodes it too."""
    left = np.pad(mask, 1)
    while True:
        smaller = left.copy()
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            smaller &= np.roll(left, shift, axis)
        if not smaller.any():
            break
        left = smaller
    rows, columns = np.nonzero(left)
    middle = len(rows) // 2
    return float(columns[middle] - 1), float(rows[middle] - 1)


def masks_of(
    model: Sam2VideoModel,
    processor: Sam2VideoProcessor,
    clip: Clip,
    objects: list[int],
    *,
    clicks: list[tuple[float, float]] | None = None,
    boxes: list[Floats] | None = None,
    last: int | None = None,
) -> list[tuple[Masks, Floats]]:
    """Masks (N, H, W) and object scores (N,) of each frame up to `last`, prompted on frame 0."""
    session = processor.init_video_session(video=list(clip.frames))
    given: dict[str, Any] = {}
    if clicks is not None:
        given["input_points"] = [[[list(click)] for click in clicks]]
        given["input_labels"] = [[[1] for _ in clicks]]
    if boxes is not None:
        given["input_boxes"] = [[box.tolist() for box in boxes]]
    processor.add_inputs_to_inference_session(session, 0, objects, **given)
    frames = []
    for output in model.propagate_in_video_iterator(session, 0, max_frame_num_to_track=last):
        size = clip.labels.shape[1:]
        logits = upsample_logits(output.pred_masks.squeeze(1), (size[0], size[1]))
        frames.append(((logits > 0).numpy(), output.object_score_logits.squeeze(1).numpy()))
    return frames
