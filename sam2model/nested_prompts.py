"""The nested lists of transformers' calls to clicks and boxes of each object.

Knows nothing of sessions. Every fault of the nesting is a PromptError that says where it is.
"""

from numbers import Real
from typing import Any

import torch

from sam2model.prompt_encoder import LABEL_BOX_END, LABEL_BOX_START
from sam2model.prompts import PromptError
from sam2model.stepper import ModelPrompt


def first_image(values: Any, depth: int, name: str, num_objects: int) -> list[Any]:
    """The entries of the one image, one for each object; Nones where there are none."""
    if values is None:
        return [None] * num_objects
    nested = _as_lists(values)
    level, found = nested, 0
    while isinstance(level, list | tuple):
        found += 1
        if not level:
            break
        level = level[0]
    if found != depth and level != []:
        raise PromptError(f"{name}: {found} levels of brackets; wanted {depth}, images first")
    if len(nested) != 1 or len(nested[0]) != num_objects:
        raise PromptError(
            f"{name}: got {len(nested)} images of {[len(i) for i in nested]} objects; "
            f"wanted 1 of {num_objects}"
        )
    return list(nested[0])


def _as_lists(values: Any) -> Any:
    """Nested lists of plain numbers, whatever of it is an array or a tensor."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_as_lists(v) for v in values] if isinstance(values, list | tuple) else values


def _numbers(name: str, value: Any, wanted: tuple[str, ...]) -> list[float]:
    """The coordinates of one point or box."""
    numbers = value if isinstance(value, list | tuple) else []
    if len(numbers) != len(wanted) or not all(isinstance(n, Real) for n in numbers):
        raise PromptError(f"{name}: {value}; wanted [{', '.join(wanted)}]")
    return [float(n) for n in numbers]


def clicks(points: Any, labels: Any, box: Any, scale: tuple[float, float]) -> ModelPrompt:
    """Clicks and a box of one object as model points; the box comes first."""
    coordinates: list[list[float]] = []
    kinds: list[int] = []
    if box is not None:
        corners = _numbers("input_boxes", box, ("x0", "y0", "x1", "y1"))
        coordinates += [corners[:2], corners[2:]]
        kinds += [LABEL_BOX_START, LABEL_BOX_END]
    points = [_numbers("input_points", point, ("x", "y")) for point in points or []]
    labels = labels or []
    if len(points) != len(labels):
        raise PromptError(f"{len(points)} points but {len(labels)} labels; wanted as many")
    bad = [label for label in labels if label not in (0, 1)]
    if bad:
        raise PromptError(f"labels {bad}: wanted 1 (adds) or 0 (takes away)")
    coordinates += points
    kinds += [int(label) for label in labels]
    if not coordinates:
        raise PromptError("no points and no box; wanted one of them for every object")
    where = torch.tensor(coordinates, dtype=torch.float32).reshape(-1, 2)
    if not bool(where.isfinite().all()):
        raise PromptError(f"coordinates must be finite, got {coordinates}")
    return ModelPrompt(where * torch.tensor(scale), torch.tensor(kinds, dtype=torch.int64))
