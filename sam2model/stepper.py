"""Any objects on any frames to batched steps and their memories. Knows nothing of videos.

Objects that read equally many masks, or that have equally many clicks, share a step; the
outputs come back in the order asked.
"""

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sam2model.graphs import Directly, Runner
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

    points: (P, 2) fp32; labels: (P,) int64; mask: (S, S) bool, or None. is_clicks: made of clicks
    alone, so that it corrects what is there; read from the labels, which must then be at hand.
    """

    points: Tensor
    labels: Tensor
    mask: Tensor | None = None
    is_clicks: bool = field(init=False)

    def __post_init__(self) -> None:
        is_clicks = self.mask is None and bool((self.labels < 2).all())
        object.__setattr__(self, "is_clicks", is_clicks)

    def to(self, device: torch.device) -> "ModelPrompt":
        """The same prompt on a device, without waiting for it."""
        moved = copy(self)
        for name in ("points", "labels", "mask"):
            tensor = getattr(self, name)
            if tensor is not None and device.type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            if tensor is not None:
                object.__setattr__(moved, name, tensor.to(device, non_blocking=True))
        return moved


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

    slots: the most objects of one step, which bounds the memory that a step takes. runner: does
    the steps; one that wants few shapes gets steps of 1, 2, 4, 8 … objects, filled up with
    repetitions whose answers nobody reads or remembers.
    """

    def __init__(
        self,
        network: Sam2Network,
        semantics: Semantics,
        *,
        keep_all: bool,
        slots: int = 16,
        runner: Runner | None = None,
    ) -> None:
        config = network.config
        height, width = config.feature_size
        self.network = network.for_compute()
        self.semantics = semantics
        self.slots = slots
        self._runner = runner or Directly()
        self._few_shapes = runner is not None
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
            filled = self._filled(group)
            inputs = self._rows(image, filled), self._read(filled)
            output, memory = self._runner.run("track", self._track, *inputs)
            if remember:
                self._write(group, output, memory)
            return output.rows(slice(0, len(group)))

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
            filled = self._filled(group)
            output, memory = self._prompt_step(self._rows(image, filled), filled)
            self._write(group, output, memory)
            return output.rows(slice(0, len(group)))

        return self._grouped(asks, kind, run)

    def correct(self, image: ImageFeatures, asks: Sequence[Ask]) -> StepOutput:
        """Prompt objects on frames that they can be tracked to.

        Clicks correct the mask that tracking gives here; a box or a mask stands for itself.
        """
        if self.semantics.feed_previous_logits:
            blind = [
                a for a in asks if a.previous_logits is None and a.prompt and a.prompt.is_clicks
            ]
            tracked = {}
            if blind:
                output = self.track(image, [replace(a, prompt=None) for a in blind], remember=False)
                tracked = {id(a): output.logits[i] for i, a in enumerate(blind)}
            asks = [replace(a, previous_logits=tracked.get(id(a), a.previous_logits)) for a in asks]
        return self.prompt(image, [replace(a, is_correction=True) for a in asks])

    def rehearse(self, count: int) -> None:
        """Do a step of so many objects, each on a frame of its own, that remember all they can.

        Nothing is read or remembered. What kernels and libraries do on their first call is done.
        """
        network, limits = self.network, self.bank.limits
        device, size = network.device, network.config.image_size
        image = network.encode_images(torch.zeros((1, 3, size, size), device=device))
        rows = image.rows(torch.zeros(count, dtype=torch.int64, device=device))
        masks, pointers = 1 + limits.recent_masks, 1 + limits.recent_pointers
        places, channels = image.coarse.shape[1], network.config.memory_encoder_output_channels
        hidden = network.config.hidden_size
        memory = Readout(
            torch.zeros((count, masks, places, channels), dtype=torch.bfloat16, device=device),
            torch.arange(masks, device=device).expand(count, -1),
            torch.zeros((count, pointers, hidden), dtype=network.dtype, device=device),
            torch.zeros((count, pointers), device=device),
            torch.ones((count, pointers), dtype=torch.bool, device=device),
        )
        self._track(rows, memory)

    def _track(self, image: ImageFeatures, memory: Readout) -> tuple[StepOutput, Tensor]:
        """Tracked objects, and what to remember of them."""
        output = self.network.track_step(image, memory)
        tracked = torch.zeros_like(output.object_score, dtype=torch.bool)
        remembered = self.network.encode_memory(image, output.logits, output.object_score, tracked)
        return self._clean(output), remembered

    def _prompt_step(self, rows: ImageFeatures, group: Sequence[Ask]) -> tuple[StepOutput, Tensor]:
        """Prompted objects, and what to remember of them."""
        prompts = [a.prompt for a in group if a.prompt is not None]
        given = [p.mask for p in prompts if p.mask is not None]
        if given:
            return self._runner.run("mask", self._take_masks, rows, torch.stack(given))
        previous = [a.previous_logits for a in group if a.previous_logits is not None]
        batch = PromptBatch(
            torch.stack([p.points for p in prompts]),
            torch.stack([p.labels for p in prompts]),
            torch.stack(previous).clamp(-32, 32) if previous else None,  # as in Meta's code
        )
        memory = self._read(group) if group[0].is_correction else None
        return self._runner.run("clicks", self._take_clicks, rows, memory, batch)

    def _take_masks(self, image: ImageFeatures, masks: Tensor) -> tuple[StepOutput, Tensor]:
        semantics = self.semantics
        output = self.network.mask_step(image, masks, semantics.mask_pointer_best_of_three)
        in_full = semantics.remember_given_masks_in_full
        logits = 2 * masks.float() - 1 if in_full else output.logits
        return output, self._encode_prompted(image, output, logits)

    def _take_clicks(
        self, image: ImageFeatures, memory: Readout | None, batch: PromptBatch
    ) -> tuple[StepOutput, Tensor]:
        output = self._clean(self.network.prompt_step(image, memory, batch))
        return output, self._encode_prompted(image, output, output.logits)

    def _encode_prompted(self, image: ImageFeatures, output: StepOutput, logits: Tensor) -> Tensor:
        prompted = torch.ones_like(output.object_score, dtype=torch.bool)
        return self.network.encode_memory(image, logits, output.object_score, prompted)

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

    def _filled(self, group: Sequence[Ask]) -> Sequence[Ask]:
        """The group, repeating its first up to the next of few sizes."""
        if not self._few_shapes:
            return group
        size = min(1 << (len(group) - 1).bit_length(), self.slots)
        return [*group, *[group[0]] * (size - len(group))]

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
        spans = [self.bank.pointer_span(a.num_frames) for a in group]
        return self.bank.read(recalls, spans, few_shapes=self._few_shapes)

    def _write(self, group: Sequence[Ask], output: StepOutput, memory: Tensor) -> None:
        self.bank.write(
            [a.key for a in group],
            [a.frame_index for a in group],
            [a.direction for a in group],
            memory[: len(group)],
            output.pointer[: len(group)],
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
