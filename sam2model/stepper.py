"""Any objects on any frames to batched steps and their memories. Knows nothing of videos.

Objects that read equally many masks, or that have equally many clicks, share a step; the
outputs come back in the order asked.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2model.mask_ops import fill_holes, remove_sprinkles
from sam2model.memory_bank import (
    BankLimits,
    Direction,
    MemoryBank,
    Readout,
    Recall,
    to_device,
)
from sam2model.semantics import Semantics
from sam2model.track_step import ImageFeatures, PromptBatch, Sam2Network, StepOutput, concatenate


@dataclass(frozen=True, slots=True, eq=False)
class ModelPrompt:
    """A prompt in model pixels: clicks (a box is two), or a mask at the model's size.

    points: (P, 2) fp32; labels: (P,) int64; mask: (S, S) bool, or None.
    """

    points: Tensor
    labels: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device) -> "ModelPrompt":
        """The same prompt on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return ModelPrompt(self.points.to(device), self.labels.to(device), mask)


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One object on one frame.

    key: the object in the bank; row: its frame in the ImageFeatures; num_frames: the video's
    length where known. prompt: what a person said here; a correction is read with the object's
    memories, a first prompt without. previous_logits: (4H, 4W) of the mask being corrected.
    """

    key: int
    row: int
    frame_index: int
    direction: Direction = 1
    num_frames: int | None = None
    prompt: ModelPrompt | None = None
    is_correction: bool = False
    previous_logits: Tensor | None = None


class Stepper:
    """Runs asks through the network and keeps the bank.

    slots: the most objects of one step, which bounds the memory that a step takes.
    """

    def __init__(
        self, network: Sam2Network, semantics: Semantics, *, keep_all: bool, slots: int = 16
    ) -> None:
        config = network.config
        height, width = config.feature_size
        self.network = network.for_compute()
        self.semantics = semantics
        self.slots = slots
        self.bank = MemoryBank(
            BankLimits(
                recent_masks=config.num_maskmem - 1,
                recent_pointers=config.max_object_pointers_in_encoder - 1,
                max_conditioning=config.max_cond_frame_num,
            ),
            (height * width, config.memory_encoder_output_channels),
            config.hidden_size,
            self.network.device,
            self.network.dtype,
            one_history=semantics.one_history,
            keep_all=keep_all,
        )

    def track(self, image: ImageFeatures, asks: Sequence[Ask], remember: bool = True) -> StepOutput:
        """Track objects that are already remembered; `remember` the result or only look."""

        def run(group: Sequence[Ask]) -> StepOutput:
            rows = self._rows(image, group)
            output = self.network.track_step(rows, self._read(group))
            if remember:
                prompted = torch.zeros(len(group), dtype=torch.bool, device=output.logits.device)
                self._write(rows, group, output, output.logits, prompted)
            return self._clean(output)

        recalls = {id(a): len(self._recall(a).mask_pages) for a in asks}
        return self._grouped(asks, lambda a: recalls[id(a)], run)

    def prompt(self, image: ImageFeatures, asks: Sequence[Ask]) -> StepOutput:
        """Segment prompted objects and make their frames conditioning frames for ever."""
        for ask in asks:  # a prompt given anew replaces what the frame left before
            self.bank.forget_frame(ask.key, ask.frame_index)

        def kind(ask: Ask) -> Hashable:
            assert ask.prompt is not None
            reads = len(self._recall(ask).mask_pages) if ask.is_correction else 0
            is_mask, has_previous = ask.prompt.mask is not None, ask.previous_logits is not None
            return is_mask, len(ask.prompt.labels), reads, has_previous

        def run(group: Sequence[Ask]) -> StepOutput:
            rows = self._rows(image, group)
            output, remembered = self._prompt_step(rows, group)
            prompted = torch.ones(len(group), dtype=torch.bool, device=output.logits.device)
            self._write(rows, group, output, remembered, prompted)
            return output

        return self._grouped(asks, kind, run)

    def correct(self, image: ImageFeatures, asks: Sequence[Ask]) -> StepOutput:
        """Prompt objects on frames that they can be tracked to.

        Clicks correct the mask that tracking gives here; a box or a mask stands for itself.
        """
        if self.semantics.feed_previous_logits:
            blind = [a for a in asks if a.previous_logits is None and _is_clicks(a.prompt)]
            tracked = {}
            if blind:
                output = self.track(image, [replace(a, prompt=None) for a in blind], remember=False)
                tracked = {id(a): output.logits[i] for i, a in enumerate(blind)}
            asks = [replace(a, previous_logits=tracked.get(id(a), a.previous_logits)) for a in asks]
        return self.prompt(image, [replace(a, is_correction=True) for a in asks])

    def _prompt_step(self, rows: ImageFeatures, group: Sequence[Ask]) -> tuple[StepOutput, Tensor]:
        """The output of prompted objects, and the logits to remember them by."""
        prompts = [a.prompt for a in group if a.prompt is not None]
        given = [p.mask for p in prompts if p.mask is not None]
        if given:
            masks = torch.stack(given)
            semantics = self.semantics
            output = self.network.mask_step(rows, masks, semantics.mask_pointer_best_of_three)
            if semantics.remember_given_masks_in_full:
                return output, 2 * masks.float() - 1
            return output, output.logits
        previous = [a.previous_logits for a in group if a.previous_logits is not None]
        batch = PromptBatch(
            torch.stack([p.points for p in prompts]),
            torch.stack([p.labels for p in prompts]),
            torch.stack(previous).clamp(-32, 32) if previous else None,  # as in Meta's code
        )
        memory = self._read(group) if group[0].is_correction else None
        output = self._clean(self.network.prompt_step(rows, memory, batch))
        return output, output.logits

    def _grouped(
        self,
        asks: Sequence[Ask],
        kind: Callable[[Ask], Hashable],
        run: Callable[[Sequence[Ask]], StepOutput],
    ) -> StepOutput:
        """Run asks of one kind together, at most `slots` at a time; outputs as asked."""
        groups: dict[Hashable, list[int]] = {}
        for index, ask in enumerate(asks):
            groups.setdefault(kind(ask), []).append(index)
        order: list[int] = []
        outputs: list[StepOutput] = []
        for members in groups.values():
            for start in range(0, len(members), self.slots):
                part = members[start : start + self.slots]
                outputs.append(run([asks[i] for i in part]))
                order += part
        if len(outputs) == 1:
            return outputs[0]
        back = to_device(order, torch.int64, outputs[0].logits.device).argsort()
        return concatenate(outputs).rows(back)

    def _rows(self, image: ImageFeatures, group: Sequence[Ask]) -> ImageFeatures:
        """The frames of a group: one row when all share a frame, else one for each object."""
        rows = [a.row for a in group]
        if len(set(rows)) == 1:
            return image.rows(slice(rows[0], rows[0] + 1))
        return image.rows(to_device(rows, torch.int64, image.coarse.device))

    def _recall(self, ask: Ask) -> Recall:
        return self.bank.recall(ask.key, ask.frame_index, ask.direction, ask.num_frames)

    def _read(self, group: Sequence[Ask]) -> Readout:
        recalls = [self._recall(a) for a in group]
        return self.bank.read(recalls, [self.bank.pointer_span(a.num_frames) for a in group])

    def _write(
        self,
        rows: ImageFeatures,
        group: Sequence[Ask],
        output: StepOutput,
        logits: Tensor,
        prompted: Tensor,
    ) -> None:
        memory = self.network.encode_memory(rows, logits, output.object_score, prompted)
        self.bank.write(
            [a.key for a in group],
            [a.frame_index for a in group],
            [a.direction for a in group],
            memory,
            output.pointer,
            conditioning=group[0].prompt is not None,
        )

    def _clean(self, output: StepOutput) -> StepOutput:
        """Fill small holes and remove sprinkles, as the semantics say."""
        logits = output.logits
        if self.semantics.hole_area_px > 0:
            logits = fill_holes(logits, self.semantics.hole_area_px)
        if self.semantics.sprinkle_area_px > 0:
            logits = remove_sprinkles(logits, self.semantics.sprinkle_area_px)
        return replace(output, logits=logits)


def _is_clicks(prompt: ModelPrompt | None) -> bool:
    """Whether a prompt is made of clicks alone, and so corrects what is there."""
    return prompt is not None and prompt.mask is None and bool((prompt.labels < 2).all())
