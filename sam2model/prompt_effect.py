"""From which frame on a changed prompt changes masks. Knows nothing of models or of videos.

What each kind of change reaches, of one object, by the rules of `labelling_plan`:

| changed, added or taken away | frames whose masks change |
|---|---|
| the first prompt, or any prompt before it | all |
| later clicks on frame k | from k on; all before the first prompt: that pass reads all prompts |
| a later box or mask on frame k | all but the first prompted frame, for it is read ahead |
| the same, with capped conditioning frames | from the first frame that reads another selection |

Frames between the first prompt and the first frame reached keep their masks to the last bit, so
whoever has them need not compute them again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from sam2model.memory_bank import select_conditioning
from sam2model.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Effect:
    """Frames that a change reaches: those before `begins` and those from `reaches` on."""

    begins: int
    reaches: int

    def __contains__(self, frame_index: int) -> bool:
        return frame_index < self.begins or frame_index >= self.reaches


@dataclass(frozen=True, slots=True)
class Said:
    """What a prompt says. digest: 16 bytes, equal for equal prompts of any object.

    is_complete: a box or a mask, which describes the object without what came before.
    """

    digest: bytes
    is_complete: bool


History = Mapping[int, Said]  # frame → what one object's prompt there says


def said(prompt: Prompt) -> Said:
    """A prompt without its mask's pixels, which may be large."""
    text = hashlib.blake2b(digest_size=16)
    text.update(repr((prompt.points_px, prompt.positive, prompt.box_xyxy_px)).encode())
    if prompt.mask is not None:
        text.update(repr(prompt.mask.shape).encode())
        text.update(prompt.mask.tobytes())
    return Said(text.digest(), prompt.mask is not None or prompt.box_xyxy_px is not None)


def history(prompts: Mapping[int, Prompt]) -> dict[int, Said]:
    """What one object's prompts say: frame → prompt to frame → what it says."""
    return {frame: said(prompt) for frame, prompt in prompts.items()}


def effect_of_change(before: History, after: History, max_conditioning: int) -> Effect | None:
    """What becomes other when one object's prompts change; None when nothing does.

    after: not empty. max_conditioning: conditioning frames that a step reads, -1 for all.
    """
    begins = min(after)
    frames = before.keys() | after.keys()
    changed = {frame for frame in frames if before.get(frame) != after.get(frame)}
    if not changed:
        return None
    if not before or min(before) != begins or begins in changed:
        return Effect(begins, begins)
    reaches = min(changed)
    ahead = _read_ahead(before), _read_ahead(after)
    if ahead[0] == ahead[1]:
        return Effect(begins, reaches)
    if max_conditioning == -1:
        return Effect(begins, begins + 1)
    # Up to the first changed frame both have the same clicks; they may read other masks ahead.
    for frame in range(begins + 1, reaches):
        known = _selected(before, ahead[0], frame, max_conditioning)
        if known != _selected(after, ahead[1], frame, max_conditioning):
            return Effect(begins, frame)
    return Effect(begins, reaches)


def _read_ahead(told: History) -> dict[int, Said]:
    begins = min(told)
    return {frame: said for frame, said in told.items() if frame > begins and said.is_complete}


def _selected(
    told: History, ahead: Mapping[int, Said], frame: int, cap: int
) -> list[tuple[int, Said | None]]:
    """The conditioning frames that a step of the forward pass reads, and what they say.

    Clicks before `frame` are the same in both that are compared, so their frame names them.
    """
    known = sorted({*ahead, *(f for f in told if f < frame)})
    selected, spare = select_conditioning(known, frame, cap)
    # A spare one is read all the same where it lies within the recent frames: always a past one.
    past = sorted(f for f in spare if f < frame)
    return [(f, ahead.get(f)) for f in [*selected, *past]]
