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

from sam2model.labelling_plan import restated
from sam2model.memory_bank import select_conditioning
from sam2model.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Effect:
    """Frames that a change reaches: those before `begins` and those from `reaches` on."""

    begins: int
    reaches: int

    def __contains__(self, frame_index: int) -> bool:
        return frame_index < self.begins or frame_index >= self.reaches


def said(prompt: Prompt) -> bytes:
    """What a prompt says, in 16 bytes: equal for equal prompts, whichever object they are of."""
    text = hashlib.blake2b(digest_size=16)
    text.update(repr((prompt.points_px, prompt.positive, prompt.box_xyxy_px)).encode())
    if prompt.mask is not None:
        text.update(repr(prompt.mask.shape).encode())
        text.update(prompt.mask.tobytes())
    return text.digest()


def effect_of_change(
    before: Mapping[int, Prompt], after: Mapping[int, Prompt], max_conditioning: int
) -> Effect | None:
    """What becomes other when one object's prompts change; None when nothing does.

    before, after: frame → prompt, `after` not empty; max_conditioning: -1 means no cap.
    """
    begins = min(after)
    said_before = {frame: said(p) for frame, p in before.items()}
    said_after = {frame: said(p) for frame, p in after.items()}
    changed = {
        frame
        for frame in before.keys() | after.keys()
        if said_before.get(frame) != said_after.get(frame)
    }
    if not changed:
        return None
    if not before or min(before) != begins or begins in changed:
        return Effect(begins, begins)
    reaches = min(changed)
    read_ahead = _read_ahead(before, said_before), _read_ahead(after, said_after)
    if read_ahead[0] == read_ahead[1]:
        return Effect(begins, reaches)
    if max_conditioning == -1:
        return Effect(begins, begins + 1)
    # Up to the first changed frame both have the same clicks; they may read other masks ahead.
    for frame in range(begins + 1, reaches):
        selections = [
            _selected(prompts, ahead, frame, max_conditioning)
            for prompts, ahead in zip((before, after), read_ahead, strict=True)
        ]
        if selections[0] != selections[1]:
            return Effect(begins, frame)
    return Effect(begins, reaches)


def _read_ahead(prompts: Mapping[int, Prompt], told: Mapping[int, bytes]) -> dict[int, bytes]:
    return {frame: told[frame] for frame in restated(prompts)}


def _selected(
    prompts: Mapping[int, Prompt], ahead: Mapping[int, bytes], frame: int, cap: int
) -> list[tuple[int, bytes | None]]:
    """The conditioning frames that a step of the forward pass reads, and what they say.

    Clicks before `frame` are the same in both that are compared, so their frame names them.
    """
    known = sorted({*ahead, *(f for f in prompts if f < frame)})
    selected, spare = select_conditioning(known, frame, cap)
    # A spare one is read all the same where it lies within the recent frames: always a past one.
    past = sorted(f for f in spare if f < frame)
    return [(f, ahead.get(f)) for f in [*selected, *past]]
