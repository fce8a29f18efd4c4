"""Scripts on which transformers is sound, so that ours must say the same. Knows no model.

`python tests/scenarios.py` prints the largest error of every one of them.
"""

import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from reference import Frames, hf_side, pixel_values, small_hf_model, synthetic_frames
from script import ABSENT, Add, Emission, Propagate, Reset, Run, Side, Step, Stream, largest_error

import sam2model

HEIGHT, WIDTH = 96, 160  # of the videos, in pixels; the model's image is square

# Of one object's largest logit. Rounding memories to bf16 turns differences of 1e-6 into some
# of 1e-5, in transformers itself: a change of 1e-6 in the pixels gives up to 5e-5.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Scenario:
    """A script on a synthetic video, for a small model with these changes to its configuration."""

    name: str
    script: list[Step]
    frames: int = 6
    size_hw: tuple[int, int] = (HEIGHT, WIDTH)
    config: dict[str, Any] = field(default_factory=dict)
    flickers: bool = False

    @property
    def streams(self) -> bool:
        return any(isinstance(step, Stream) for step in self.script)

    def video(self) -> Frames:
        return synthetic_frames(self.frames, *self.size_hw)


@lru_cache(maxsize=8)
def our_model(hf_model: Any, semantics: str | Any = "reference") -> sam2model.Sam2VideoModel:
    """Our model with the weights and the configuration of transformers'."""
    config = sam2model.Sam2VideoConfig.from_dict(hf_model.config.to_dict())
    model = sam2model.Sam2VideoModel(config, semantics=semantics)
    model.load_state_dict(hf_model.state_dict())
    return model.requires_grad_(False)


def our_side(
    model: sam2model.Sam2VideoModel,
    frames: Frames,
    *,
    streaming: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Side:
    """Ours, with a session on the very pixels that transformers gets."""
    size = model.config.image_size
    height, width = frames.shape[1:3]
    pixels = pixel_values(frames, size)
    session = sam2model.Sam2VideoInferenceSession(
        video=None if streaming else pixels,
        video_height=None if streaming else height,
        video_width=None if streaming else width,
        dtype=dtype,
    )
    processor = sam2model.Sam2VideoProcessor(sam2model.Sam2VideoVideoProcessor(size))
    return Side(model, processor, session, pixels, (height, width))


def both(scenario: Scenario) -> tuple[list[Emission], list[Emission]]:
    """What ours says and what transformers says."""
    hf_model = small_hf_model(flickers=scenario.flickers, **scenario.config)
    theirs = hf_side(hf_model, scenario.video(), streaming=scenario.streams)
    ours = our_side(our_model(hf_model), scenario.video(), streaming=scenario.streams)
    return ours.play(scenario.script), theirs.play(scenario.script)


def rectangle(
    rows: slice, columns: slice, size_hw: tuple[int, int] = (HEIGHT, WIDTH)
) -> npt.NDArray[np.bool_]:
    """A mask that is true in a rectangle."""
    mask = np.zeros(size_hw, np.bool_)
    mask[rows, columns] = True
    return mask


DISC, OTHER = (40.0, 30.0), (110.0, 58.0)  # inside the two moving discs on frame 0


def click(frame: int, object_id: int = 1, at: tuple[float, float] = DISC) -> list[Step]:
    """One positive click, answered at once."""
    return [Add(frame, [object_id], points=[[at]], signs=[[1]]), Run(frame)]


TWO_CLICKED = Add(0, [1, 2], points=[[DISC], [OTHER]], signs=[[1], [1]])

SCENARIOS = [
    Scenario("one click", [*click(0), Propagate()]),
    Scenario(
        "three clicks, one of them negative",
        [Add(0, [1], points=[[DISC, (50, 40), (100, 80)]], signs=[[1, 1, 0]]), Run(0), Propagate()],
    ),
    Scenario("box", [Add(0, [1], boxes=[(20, 10, 60, 50)]), Run(0), Propagate()]),
    Scenario(
        "box and a negative click in one call",
        [
            Add(0, [1], boxes=[(20, 10, 60, 50)], points=[[(58, 12)]], signs=[[0]]),
            Run(0),
            Propagate(),
        ],
    ),
    Scenario(
        "box, then a click added to it",
        [
            Add(0, [1], boxes=[(20, 10, 60, 50)]),
            Run(0),
            Add(0, [1], points=[[(58, 12)]], signs=[[0]], clear=False),
            Run(0),
            Propagate(),
        ],
    ),
    Scenario(
        "a click that replaces a click, then a mask, then a click",
        [
            *click(0),
            *click(0, at=OTHER),
            Add(0, [1], masks=[rectangle(slice(20, 60), slice(70, 120))]),
            Run(0),
            *click(0),
            Propagate(),
        ],
    ),
    Scenario(
        "masks of four sizes, one of them empty",
        [
            Add(
                0,
                [1, 2, 3, 4],
                masks=[
                    rectangle(slice(20, 60), slice(70, 120)),
                    rectangle(slice(10, 30), slice(5, 40), (70, 50)),
                    rectangle(slice(0, 0), slice(0, 0), (128, 128)),
                    rectangle(slice(20, 280, 7), slice(30, 400), (300, 500)),
                ],
            ),
            Run(0),
            Propagate(),
        ],
    ),
    Scenario(
        "three objects with two clicks each in one call",
        [
            Add(
                0,
                [7, 2, 5],
                points=[[DISC, (45, 35)], [OTHER, (60, 60)], [(10, 80), (20, 90)]],
                signs=[[1, 1], [1, 0], [1, 1]],
            ),
            Run(0),
            Propagate(),
        ],
    ),
    Scenario(
        "a click, a box and a mask on three objects, one call each",
        [
            *click(0),
            Add(0, [2], boxes=[(80, 30, 140, 90)]),
            Run(0),
            Add(0, [3], masks=[rectangle(slice(20, 60), slice(70, 120))]),
            Run(0),
            Propagate(),
        ],
    ),
    Scenario(
        "objects that begin on different frames", [*click(0), *click(3, 2, OTHER), Propagate()]
    ),
    Scenario(
        "stream", [Add(0, [1], points=[[DISC]], signs=[[1]]), *map(Stream, range(18))], frames=18
    ),
    Scenario(
        "stream of two objects that come and go",
        [TWO_CLICKED, *map(Stream, range(8))],
        frames=8,
        flickers=True,
    ),
    Scenario("backwards from a middle frame", [*click(6), Propagate(reverse=True)], frames=8),
    Scenario(
        "backwards, two objects that come and go",
        [
            Add(11, [1, 2], points=[[DISC], [OTHER]], signs=[[1], [1]]),
            Run(11),
            Propagate(reverse=True),
        ],
        frames=12,
        flickers=True,
    ),
    Scenario(
        "forwards, then backwards through what that left",
        [*click(4), Propagate(), Propagate(reverse=True)],
    ),
    Scenario(
        "start and number of frames given",
        [
            *click(2),
            Propagate(start=3, count=4),
            Propagate(start=7, count=0),
            Propagate(start=4, count=2, reverse=True),
        ],
        frames=8,
    ),
    Scenario("stopped and resumed", [*click(0), Propagate(count=3), Propagate(start=4)]),
    Scenario("frames left out", [*click(0), Run(1), Run(4), Run(5), Run(7), Run(6)], frames=8),
    Scenario("propagated twice", [*click(0), Propagate(), Propagate()], frames=6),
    Scenario("clip of two frames", [*click(0), Propagate()], frames=2),
    Scenario("clip of five frames", [*click(0), Propagate()], frames=5),
    Scenario(
        "twenty frames, two objects that come and go",
        [TWO_CLICKED, Run(0), Propagate()],
        frames=20,
        flickers=True,
    ),
    Scenario(
        "prompts on three frames of one object",
        [*click(0), *click(4, at=OTHER), *click(7), Propagate()],
        frames=8,
    ),
    Scenario(
        "five prompted frames, two of them read at a time",
        [*(s for f in (0, 2, 4, 5, 7) for s in click(f, at=(40 + 4 * f, 30 + f))), Propagate()],
        frames=8,
        config={"max_cond_frame_num": 2},
    ),
    Scenario(
        "SAM 2.0: no pointer times, no occlusion embedding",
        [TWO_CLICKED, Run(0), Propagate()],
        config={
            "enable_temporal_pos_encoding_for_object_pointers": False,
            "enable_occlusion_spatial_embedding": False,
        },
        flickers=True,
    ),
    Scenario(
        "fewer memories and pointers",
        [*click(0, at=OTHER), Propagate()],
        config={"num_maskmem": 4, "max_object_pointers_in_encoder": 3},
    ),
    Scenario(
        "single masks while tracking, some of them too unstable to take",
        [Add(0, [1], boxes=[(20, 10, 60, 50)]), Run(0), *click(2, 2, OTHER), Propagate()],
        config={"multimask_output_for_tracking": False, "stability_delta": 0.1},
    ),
    Scenario("tall video", [*click(0), Propagate()], frames=6, size_hw=(160, 90)),
    Scenario("larger model", [*click(0), Propagate()], frames=4, config={"image_size": 256}),
    Scenario("reset, then another object", [*click(0), Run(1), Reset(), *click(3, 9), Propagate()]),
]


def table() -> str:
    """Every scenario with its largest error, a line each."""
    lines = [f"{'largest error':>13}  {'masks':>5}  {'absent':>6}  scenario"]
    for scenario in SCENARIOS:
        ours, theirs = both(scenario)
        masks = [m for e in theirs for m in e.logits.values()]
        absent = sum(bool((m == ABSENT).all()) for m in masks)
        error = largest_error(ours, theirs)
        lines.append(f"{error:13.1e}  {len(masks):5d}  {absent:6d}  {scenario.name}")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(table() + "\n")
