"""Scripts played by transformers and by ours on the same small model and video. Knows no test."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from reference import hf_side, rebuilt_as, small_hf_model, synthetic_frames
from scenarios import OTHER, TOLERANCE, our_model, our_side
from script import Add, Emission, Side, Step, Stream, largest_error, of_object

BOTH = pytest.mark.parametrize("semantics", ["reference", "labelling"])
VISIBLE = 100 * TOLERANCE  # a change that a user would see
LATER = 5  # a frame that has been tracked when it is corrected


def theirs(script: Sequence[Step], *, model: type | None = None, count: int = 8) -> list[Emission]:
    """What transformers says, as it is or mended."""
    return their_side_of(script, model, count).play(script)


def their_side_of(script: Sequence[Step], model: type | None, count: int) -> Side:
    streaming = any(isinstance(step, Stream) for step in script)
    return hf_side(_their_model(model), synthetic_frames(count), streaming=streaming)


@cache
def _their_model(model: type | None) -> Any:
    return small_hf_model() if model is None else rebuilt_as(model, small_hf_model())


def ours(script: Sequence[Step], semantics: object = "reference", count: int = 8) -> list[Emission]:
    """What our model says."""
    streaming = any(isinstance(step, Stream) for step in script)
    side = our_side_of(semantics, count, streaming=streaming)
    return side.play(script)


def our_side_of(
    semantics: object = "reference", count: int = 8, *, streaming: bool = False
) -> Side:
    model = our_model(small_hf_model(), semantics)
    return our_side(model, synthetic_frames(count), streaming=streaming)


def change(after: Emission, before: Emission, object_id: int = 1) -> float:
    """How far one object's logits moved, of the largest before."""
    return largest_error(of_object([after], object_id), of_object([before], object_id))


def unanswered(frame: int, object_id: int = 1, at: tuple[float, float] = OTHER) -> Add:
    """A click that is added and not run."""
    return Add(frame, [object_id], points=[[at]], signs=[[1]])
