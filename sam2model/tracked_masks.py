"""A step's logits to masks at the video's size, as run lengths and a few numbers.

Knows nothing of tracking. Masks leave the device as runs only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam2model.mask_ops import mask_areas, mask_boxes_xyxy, stability_scores, upsample_logits
from sam2model.rle import encode_runs, runs_to_strings
from sam2model.track_step import StepOutput

MASK_CHUNK_PX = 64 * 1024 * 1024  # full-size masks made at once: 64 MB as bytes


@dataclass(frozen=True, slots=True)
class TrackedMask:
    """One object on one frame, at the video's size.

    counts: COCO compressed run lengths; area_px 0 where the object is absent; box_xyxy_px: half
    open, zeros when absent; object_score: logit, above 0 when present; iou_pred: in [0, 1];
    stability: share of the mask that a threshold 1 logit from 0 keeps, in [0, 1].
    """

    object_id: int
    counts: str
    area_px: int
    box_xyxy_px: tuple[int, int, int, int]
    object_score: float
    iou_pred: float
    stability: float
    is_prompt: bool


@dataclass(frozen=True, slots=True)
class FrameMasks:
    """All labelled objects of one frame; pts_s: presentation time in seconds."""

    frame_index: int
    pts_s: float
    height: int
    width: int
    masks: list[TrackedMask]


def tracked_masks(
    output: StepOutput, object_ids: Sequence[int], prompted: Sequence[bool], height: int, width: int
) -> list[TrackedMask]:
    """The masks of N objects of one frame of height × width px; rows as in `output`."""
    chunk = max(1, MASK_CHUNK_PX // (height * width))
    masks: list[TrackedMask] = []
    for start in range(0, len(object_ids), chunk):
        part = slice(start, start + chunk)
        masks += _chunk(output.rows(part), object_ids[part], prompted[part], height, width)
    return masks


def _chunk(
    output: StepOutput, object_ids: Sequence[int], prompted: Sequence[bool], height: int, width: int
) -> list[TrackedMask]:
    full = upsample_logits(output.logits, (height, width)) > 0
    runs = encode_runs(full)
    whole = torch.cat((mask_areas(full)[:, None], mask_boxes_xyxy(full)), dim=1)
    scores = (output.object_score, output.iou, stability_scores(output.logits))
    strings = runs_to_strings(runs.to("cpu"), full)
    numbers = _rows(torch.stack([s.float() for s in scores], dim=1))
    return [
        TrackedMask(
            object_id=object_id,
            counts=counts,
            area_px=int(area),
            box_xyxy_px=(int(x0), int(y0), int(x1), int(y1)),
            object_score=score,
            iou_pred=iou,
            stability=stability,
            is_prompt=is_prompt,
        )
        for object_id, is_prompt, counts, (area, x0, y0, x1, y1), (score, iou, stability) in zip(
            object_ids, prompted, strings, _rows(whole), numbers, strict=True
        )
    ]


def _rows(values: Tensor) -> list[list[float]]:
    rows: list[list[float]] = values.cpu().tolist()
    return rows
