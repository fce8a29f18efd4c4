"""What objects remembered at some frames of their passes, to begin again from there.

Knows nothing of the bank or of who asks. A snapshot names the prompts that it came from, and is
offered only where other prompts would have led to the same: nothing is ever marked as outdated.
None is needed for a mask; without one the way there is gone again from the prompts.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from sam2model.memory_bank import Direction, Page, RecentPages
from sam2model.prompt_effect import History, Said, effect_of_change, said
from sam2model.prompts import Prompt
from sam2model.track_step import StepOutput
from sam2model.transfers import Parked


@dataclass(frozen=True, slots=True, eq=False)
class ParkedPage:
    """A `Page` in host memory."""

    parked: Parked

    def page(self, device: torch.device) -> Page:
        return Page(*self.parked.on(device))


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One object after `frame_index` of a pass.

    told: all that its prompts said when this was taken. corrections: the pages of its
    later clicks; first prompts, boxes and masks have theirs in `StandingAnswer`.
    """

    frame_index: int
    told: History
    corrections: Mapping[int, ParkedPage]
    mask_frames: tuple[int, ...]
    pointer_frames: tuple[int, ...]
    pages: Parked  # masks, pointers

    def is_before_prompt(self, direction: Direction) -> bool:
        """Whether the next frame was prompted, and so may be again."""
        return self.frame_index + direction in self.told

    def recent(self, device: torch.device) -> RecentPages:
        masks, pointers = self.pages.on(device)
        return RecentPages(self.mask_frames, masks, self.pointer_frames, pointers)


@dataclass(frozen=True, slots=True, eq=False)
class StandingAnswer:
    """What a prompt that reads no memory answered, and what it is remembered by."""

    remembered: ParkedPage
    output: Parked  # the fields of a StepOutput of one row

    def answer(self, device: torch.device) -> StepOutput:
        return StepOutput(*self.output.on(device))


class SnapshotStore:
    """Snapshots of one video's objects within a budget; any thread may ask.

    Over the budget the snapshot leaves whose neighbours in its pass are nearest to one another;
    those right before a prompt, which may be given again and again, leave last.
    """

    def __init__(self, budget_bytes: int, every: int) -> None:
        """every: frames from one snapshot of a pass to the next."""
        self.budget_bytes, self.every = budget_bytes, every
        self._lock = threading.Lock()
        self._passes: dict[tuple[int, Direction], dict[int, Snapshot]] = {}
        self._answers: dict[tuple[int, Said], StandingAnswer] = {}
        self._held: Counter[Parked] = Counter()  # how many snapshots and answers share each
        self._nbytes = 0

    def put(self, object_id: int, direction: Direction, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of the one of the same frame and pass."""
        with self._lock:
            self._drop(object_id, direction, snapshot.frame_index)
            self._passes.setdefault((object_id, direction), {})[snapshot.frame_index] = snapshot
            self._hold(_parts(snapshot))
            self._keep_within_budget()

    def nearest(
        self,
        object_id: int,
        direction: Direction,
        told: History,
        max_conditioning: int,
        before: int | None,
    ) -> Snapshot | None:
        """The last snapshot of a pass that prompts which say this would have led to.

        before: a frame that still lies ahead of it in its pass; None for any. A forward pass
        goes to it unless a prompt up to there differs; a backward pass reads all prompts.
        """
        with self._lock:
            known = dict(self._passes.get((object_id, direction), {}))
        for frame in sorted(known, key=lambda f: -direction * f):
            if before is not None and direction * (before - frame) <= 0:
                continue
            effect = effect_of_change(known[frame].told, told, max_conditioning)
            if effect is None or (direction == 1 and frame not in effect):
                return known[frame]
        return None

    def put_answer(self, prompt: Prompt, answer: StandingAnswer) -> None:
        """Keep the answer of a prompt that was read without a memory."""
        with self._lock:
            key = (prompt.frame_index, said(prompt))
            if key in self._answers:
                self._let_go(_parts(self._answers[key]))
            self._answers[key] = answer
            self._hold(_parts(answer))
            self._keep_within_budget()

    def answer(self, prompt: Prompt) -> StandingAnswer | None:
        """The answer of an equal prompt on the same frame."""
        with self._lock:
            return self._answers.get((prompt.frame_index, said(prompt)))

    @property
    def nbytes(self) -> int:
        """Bytes kept; what several snapshots share counts once."""
        with self._lock:
            return self._nbytes

    def __len__(self) -> int:
        with self._lock:
            return sum(len(frames) for frames in self._passes.values())

    def clear(self) -> None:
        with self._lock:
            self._passes.clear()
            self._answers.clear()
            self._held.clear()
            self._nbytes = 0

    def _keep_within_budget(self) -> None:
        while self._nbytes > self.budget_bytes:
            least = min(
                (
                    (frames[frame].is_before_prompt(pass_of[1]), after - before, pass_of, frame)
                    for pass_of, frames in self._passes.items()
                    for before, frame, after in _neighbours(sorted(frames), self.every)
                ),
                default=None,
            )
            if least is not None:
                *_, pass_of, frame = least
                self._drop(*pass_of, frame)
            elif self._answers:
                self._let_go(_parts(self._answers.pop(next(iter(self._answers)))))
            else:
                return

    def _drop(self, object_id: int, direction: Direction, frame_index: int) -> None:
        frames = self._passes.get((object_id, direction), {})
        dropped = frames.pop(frame_index, None)
        if dropped is not None:
            self._let_go(_parts(dropped))
        if not frames:
            self._passes.pop((object_id, direction), None)

    def _hold(self, parts: list[Parked]) -> None:
        for part in parts:
            self._nbytes += part.nbytes if self._held[part] == 0 else 0
            self._held[part] += 1

    def _let_go(self, parts: list[Parked]) -> None:
        for part in parts:
            self._held[part] -= 1
            if self._held[part] == 0:
                del self._held[part]
                self._nbytes -= part.nbytes


def _parts(kept: Snapshot | StandingAnswer) -> list[Parked]:
    if isinstance(kept, StandingAnswer):
        return [kept.remembered.parked, kept.output]
    return [kept.pages, *(page.parked for page in kept.corrections.values())]


def _neighbours(frames: list[int], every: int) -> Iterator[tuple[int, int, int]]:
    """Each frame between the one before and the one after it."""
    befores = [frames[0] - every, *frames[:-1]]
    afters = [*frames[1:], frames[-1] + every]
    return zip(befores, frames, afters, strict=True)
