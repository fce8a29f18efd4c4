"""The choices on which SAM 2's implementations differ. Knows nothing of how they are carried out.

`reference` is transformers' Sam2VideoModel wherever that is sound; `labelling` is what a person
who labels a video expects.
"""

from dataclasses import dataclass
from typing import Literal

SemanticsName = Literal["reference", "labelling"]


@dataclass(frozen=True, slots=True)
class Semantics:
    """One way to run the model; part of what decides a mask, so part of its fingerprint.

    Areas are in pixels of the decoder's logits (256 × 256 at 1,024 px); 0 leaves masks alone.
    """

    name: SemanticsName
    feed_previous_logits: bool
    mask_pointer_best_of_three: bool
    remember_given_masks_in_full: bool
    one_history: bool
    emit_before_first_prompt: bool
    hole_area_px: int = 0
    sprinkle_area_px: int = 0


REFERENCE = Semantics(
    name="reference",
    feed_previous_logits=False,
    mask_pointer_best_of_three=True,
    remember_given_masks_in_full=True,
    one_history=True,
    emit_before_first_prompt=True,
)

LABELLING = Semantics(
    name="labelling",
    feed_previous_logits=True,
    mask_pointer_best_of_three=False,
    remember_given_masks_in_full=False,
    one_history=False,
    emit_before_first_prompt=False,
    hole_area_px=8,  # Meta's default, at 256 × 256
    sprinkle_area_px=8,
)


def semantics_named(name: str) -> Semantics:
    """The semantics of that name; raises ValueError naming the choices."""
    for semantics in (REFERENCE, LABELLING):
        if semantics.name == name:
            return semantics
    raise ValueError(f"semantics {name!r}; wanted 'reference' or 'labelling'")
