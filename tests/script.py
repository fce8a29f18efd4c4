"""A script of what a user does with a model, and what the model said. Knows no model.

`Side.play` drives any model, processor and session that speak the public API, so the very same
script runs on transformers' classes and on ours.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

ABSENT = -1024.0  # every logit of an object that is not in the frame


@dataclass(frozen=True, slots=True)
class Add:
    """Prompts for some objects on one frame, in source pixels; one entry an object."""

    frame: int
    objects: list[int]
    points: list[list[tuple[float, float]]] | None = None
    signs: list[list[int]] | None = None
    boxes: list[tuple[float, float, float, float]] | None = None
    masks: list[npt.NDArray[np.bool_]] | None = None
    clear: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """`model(frame_idx=…)`."""

    frame: int
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Propagate:
    """`propagate_in_video_iterator`."""

    start: int | None = None
    count: int | None = None
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """`model(frame=…)` with the next frame of the video."""

    frame: int


@dataclass(frozen=True, slots=True)
class Reset:
    """`session.reset_inference_session()`."""


Step = Add | Run | Propagate | Stream | Reset


@dataclass(frozen=True, slots=True)
class Emission:
    """What the model said of one frame: logits (h, w) and object score of each object."""

    frame: int
    logits: dict[int, Tensor]
    scores: dict[int, float]


@dataclass(frozen=True, slots=True)
class Side:
    """A model, its processor, a fresh session, and the frames as it wants them when streaming."""

    model: Any
    processor: Any
    session: Any
    stream: Tensor
    size_hw: tuple[int, int]

    def play(self, script: Sequence[Step]) -> list[Emission]:
        """Do what the script says; one Emission for every frame that comes out."""
        return [emission for step in script for emission in self._do(step)]

    def _do(self, step: Step) -> Iterator[Emission]:
        match step:
            case Add():
                self.processor.add_inputs_to_inference_session(**self._inputs(step))
            case Run(frame, reverse):
                yield _emission(
                    self.model(inference_session=self.session, frame_idx=frame, reverse=reverse)
                )
            case Stream(frame):
                image = self.stream[frame]
                yield _emission(self.model(inference_session=self.session, frame=image))
            case Propagate(start, count, reverse):
                yield from map(
                    _emission,
                    self.model.propagate_in_video_iterator(
                        self.session,
                        start_frame_idx=start,
                        max_frame_num_to_track=count,
                        reverse=reverse,
                    ),
                )
            case Reset():
                self.session.reset_inference_session()

    def _inputs(self, step: Add) -> dict[str, Any]:
        """The call that adds a prompt; nested lists are new ones, since transformers pads them."""
        inputs: dict[str, Any] = {
            "inference_session": self.session,
            "frame_idx": step.frame,
            "obj_ids": list(step.objects),
            "clear_old_inputs": step.clear,
        }
        if step.points is not None:
            inputs["input_points"] = [[[list(p) for p in points] for points in step.points]]
            inputs["input_labels"] = [copy.deepcopy(step.signs)]
        if step.boxes is not None:
            inputs["input_boxes"] = [[list(box) for box in step.boxes]]
        if step.masks is not None:
            inputs["input_masks"] = list(step.masks)
        if self.session.video_height is None:
            inputs["original_size"] = self.size_hw
        return inputs


def _emission(output: Any) -> Emission:
    scores = output.object_score_logits.flatten().tolist()
    logits = [mask.float().clone() for mask in output.pred_masks[:, 0]]
    ids = output.object_ids
    return Emission(
        output.frame_idx,
        dict(zip(ids, logits, strict=True)),
        dict(zip(ids, scores, strict=True)),
    )


def largest_error(ours: Sequence[Emission], theirs: Sequence[Emission]) -> float:
    """max |a − b| / max |b| of one object's logits on one frame, the worst over all emissions.

    Raises AssertionError where the frames, the objects or their order differ.
    """
    assert [e.frame for e in ours] == [e.frame for e in theirs]
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert list(a.logits) == list(b.logits), f"frame {b.frame}"
        for object_id, expected in b.logits.items():
            got = a.logits[object_id]
            assert got.shape == expected.shape, f"frame {b.frame}, object {object_id}"
            error = (got - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(error))
    return worst


def last_of_each_frame(emissions: Sequence[Emission]) -> dict[int, Emission]:
    """The newest emission of every frame."""
    return {e.frame: e for e in emissions}


def of_object(emissions: Sequence[Emission], object_id: int) -> list[Emission]:
    """The part of the emissions that is about one object."""
    return [
        Emission(e.frame, {object_id: e.logits[object_id]}, {object_id: e.scores[object_id]})
        for e in emissions
        if object_id in e.logits
    ]
