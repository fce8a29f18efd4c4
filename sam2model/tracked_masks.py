"""A step's logits to masks at the video's size, as run lengths and a few numbers.

Knows nothing of tracking. Masks leave the device as runs only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam2model.mask_ops import mask_areas, mask_boxes_xyxy, stability_scores, upsample_logits
from sam2model.rle import Runs, encode_masks, encode_runs, runs_to_strings
from sam2model.track_step import StepOutput
from sam2model.transfers import Parked, park

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


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Some objects of a frame on their way to the host.

    numbers: their runs' counts and how many, areas and boxes, scores.
    """

    output: StepOutput
    numbers: Parked


class PendingMasks:
    """The masks of N objects of one frame, begun on the device: `finish` in another thread.

    On a GPU all is launched here, without waiting, and only runs travel; on a processor there is
    nothing to be ahead of, so all is left to `finish`.
    """

    def __init__(
        self,
        output: StepOutput,
        object_ids: Sequence[int],
        prompted: Sequence[bool],
        height: int,
        width: int,
    ) -> None:
        """Of a frame of height × width px; rows as in `output`, which nobody may write to."""
        self.object_ids, self.prompted = object_ids, prompted
        self.height, self.width = height, width
        rows = max(1, MASK_CHUNK_PX // (height * width))
        parts = [output.rows(slice(i, i + rows)) for i in range(0, len(object_ids), rows)]
        is_ahead = output.logits.device.type == "cuda"
        self._chunks = [self._launch(part) for part in parts] if is_ahead else []
        self._parts = [] if is_ahead else parts

    def finish(self) -> list[TrackedMask]:
        """The masks; waits for the device. To be called once."""
        masks: list[TrackedMask] = []
        parts, chunks = self._parts, self._chunks
        self._parts, self._chunks = [], []
        with torch.inference_mode():
            for chunk in chunks:
                masks += self._tracked(len(masks), self._from_device(chunk))
            for part in parts:
                masks += self._tracked(len(masks), self._on_host(part))
        return masks

    def _launch(self, output: StepOutput) -> _Chunk:
        full = self._full_size(output)
        runs = encode_runs(full)
        whole = torch.cat((mask_areas(full)[:, None], mask_boxes_xyxy(full)), dim=1)
        return _Chunk(output, park(runs.counts, runs.num_runs, whole, _scores(output)))

    def _from_device(self, chunk: _Chunk) -> "_Numbers":
        counts, num_runs, whole, scores = chunk.numbers.wait()
        runs = Runs(counts, num_runs)
        # A mask of more runs than were made room for is made again; that is rarer than keeping
        # all masks at full size until then would be dear.
        again = self._full_size(chunk.output) if bool(runs.overflowed.any()) else None
        strings = runs_to_strings(runs, again)
        return strings, whole[:, 0].tolist(), whole[:, 1:].tolist(), scores.tolist()

    def _on_host(self, output: StepOutput) -> "_Numbers":
        """The same by a processor, which counts runs and pixels faster in another way."""
        full = self._full_size(output)
        areas = [int(np.count_nonzero(mask)) for mask in full.numpy()]
        return encode_masks(full), areas, mask_boxes_xyxy(full).tolist(), _scores(output).tolist()

    def _full_size(self, output: StepOutput) -> Tensor:
        return upsample_logits(output.logits, (self.height, self.width)) > 0

    def _tracked(self, first: int, numbers: "_Numbers") -> list[TrackedMask]:
        """Masks of the objects from `first` on."""
        strings, areas, boxes, scores = numbers
        masks = []
        for row, counts in enumerate(strings):
            x0, y0, x1, y1 = boxes[row]
            object_score, iou_pred, stability = scores[row]
            masks.append(
                TrackedMask(
                    object_id=self.object_ids[first + row],
                    counts=counts,
                    area_px=areas[row],
                    box_xyxy_px=(x0, y0, x1, y1),
                    object_score=object_score,
                    iou_pred=iou_pred,
                    stability=stability,
                    is_prompt=self.prompted[first + row],
                )
            )
        return masks


# Of each mask its run lengths, area and box in px, and three scores.
_Numbers = tuple[list[str], list[int], list[list[int]], list[list[float]]]


def _scores(output: StepOutput) -> Tensor:
    scores = (output.object_score, output.iou, stability_scores(output.logits))
    return torch.stack([s.float() for s in scores], dim=1)
