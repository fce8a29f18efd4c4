"""A network run through a clip with gradients: prompts, corrections, memory in the loop.

Knows nothing of files, optimisers or losses. It calls the layers that the engine calls, in the
same order; only the choice among masks is left open for the losses, and memories are kept in
lists, where the engine keeps pages. tests/test_train_unroll.py holds the two together.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sam2model.frame_processing import Sam2VideoVideoProcessor
from sam2model.memory_bank import Readout
from sam2model.track_step import ABSENT_LOGIT, ImageFeatures, PromptBatch, Sam2Network
from workflows.train_losses import Answer

CLICK, BOX, MASK = 0, 1, 2  # kinds of first prompts
PREVIOUS_LIMIT = 32.0  # of logits that are fed back with a correction, as the stepper does


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """B clips of T frames and the N objects that are followed in them.

    pixels: (B, T, 3, S, S) uint8; clip: (N,) int64, each object's clip; target: (N, T, 4H, 4W)
    covered shares; area_px: (N, T) of the frame's pixels at S; kind: (N,) CLICK, BOX or MASK on
    frame 0; click: (N, 2), box: (N, 4), in pixels; mask: (N, S, S) bool; frame_indices: T
    ascending places in a video, by which memories are dated.
    """

    pixels: Tensor
    clip: Tensor
    target: Tensor
    area_px: Tensor
    kind: Tensor
    click: Tensor
    box: Tensor
    mask: Tensor
    frame_indices: tuple[int, ...]

    def to(self, device: torch.device) -> "ClipBatch":
        """The same batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        del tensors["frame_indices"]
        moved = {name: value.to(device) for name, value in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class UnrollPlan:
    """The chances of one unroll, drawn beforehand.

    rounds: corrective clicks on frame 0; corrected: frames that get one corrective click;
    trust_scores: whether absence is what the network predicts, or what is true; show_truth:
    frames whose memory is made from the true mask; seed: of the clicks' places.
    """

    rounds: int = 0
    corrected: tuple[int, ...] = ()
    trust_scores: bool = True
    show_truth: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The mask of each object that counts, as the engine would choose it."""

    logits: Tensor  # (N, 4H, 4W), never gated by the score
    object_score: Tensor
    pointer: Tensor


@dataclass(frozen=True, slots=True)
class Remembered:
    """The memory of one frame of all objects."""

    frame_index: int
    prompted: bool
    mask: Tensor
    pointer: Tensor


def unroll(
    network: Sam2Network, image: ImageFeatures, batch: ClipBatch, plan: UnrollPlan
) -> list[Answer]:
    """Every answer of a pass through the clips, prompts and corrections included.

    image: the features of all B·T frames, clip by clip.
    """
    return _Unroll(network, image, batch, plan).run()


class _Unroll:
    def __init__(
        self, network: Sam2Network, image: ImageFeatures, batch: ClipBatch, plan: UnrollPlan
    ) -> None:
        self.network, self.image, self.batch, self.plan = network, image, batch, plan
        self.num_frames = batch.pixels.shape[1]
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.remembered: list[Remembered] = []
        self.answers: list[Answer] = []

    def run(self) -> list[Answer]:
        for frame in range(self.num_frames):
            rows = self.image.rows(self.batch.clip * self.num_frames + frame)
            if frame == 0:
                chosen = self._first(rows)
            else:
                chosen = self._later(rows, frame)
            if frame + 1 < self.num_frames:
                prompted = frame == 0 or frame in self.plan.corrected
                self._remember(rows, frame, chosen, prompted)
        return self.answers

    def _first(self, rows: ImageFeatures) -> Chosen:
        """Answer the first prompts, kind by kind, and their corrections; objects in order."""
        parts: list[Chosen] = []
        order: list[Tensor] = []
        for kind in (CLICK, BOX, MASK):
            where = (self.batch.kind == kind).nonzero().squeeze(1)
            if len(where) == 0:
                continue
            order.append(where)
            parts.append(self._first_of_kind(rows.rows(where), where, kind))
        back = torch.cat(order).argsort()
        return Chosen(
            *(torch.cat([getattr(p, name) for p in parts])[back] for name in Chosen.__slots__)
        )

    def _first_of_kind(self, rows: ImageFeatures, where: Tensor, kind: int) -> Chosen:
        batch, network = self.batch, self.network
        if kind == MASK:
            step = network.mask_step(rows, batch.mask[where], best_of_three=False)
            return Chosen(step.logits, step.object_score, step.pointer)
        if kind == CLICK:
            points = batch.click[where].unsqueeze(1)
            labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
        else:
            points = batch.box[where].unflatten(1, (2, 2))
            labels = torch.tensor([2, 3], device=points.device).expand(len(where), 2)
        fresh = rows.coarse + network.no_memory_embedding
        prompt = PromptBatch(points, labels)
        chosen = self._decode(rows, fresh, prompt, 0, where)
        for _ in range(self.plan.rounds):
            prompt = self._corrected(prompt, chosen, 0, where)
            chosen = self._decode(rows, fresh, prompt, 0, where)
        return chosen

    def _later(self, rows: ImageFeatures, frame: int) -> Chosen:
        """Track to a frame, and correct it where the plan says so."""
        everyone = torch.arange(len(self.batch.clip), device=self.batch.clip.device)
        recalled = self.network.recall(rows, self._readout(frame))
        nothing = recalled.new_zeros((len(everyone), 0, 2), dtype=torch.float32)
        blank = PromptBatch(nothing, nothing[..., 0].long())
        chosen = self._decode(rows, recalled, blank, frame, everyone)
        if frame in self.plan.corrected:
            prompt = self._corrected(blank, chosen, frame, everyone)
            chosen = self._decode(rows, recalled, prompt, frame, everyone)
        return chosen

    def _decode(
        self,
        rows: ImageFeatures,
        conditioned: Tensor,
        prompt: PromptBatch,
        frame: int,
        where: Tensor,
    ) -> Chosen:
        """Decode, note the answer for the losses, and choose as the engine does."""
        network, config = self.network, self.network.config
        encoder = network.prompt_encoder
        every = network.mask_decoder.every_mask(
            conditioned,
            rows.fine,
            rows.middle,
            encoder.embed_points(prompt.points, prompt.labels),
            encoder.embed_mask(prompt.previous_logits),
        )
        several = network.is_ambiguous(prompt.points.shape[1])
        if frame > 0:
            several = several and config.multimask_output_for_tracking
        self.answers.append(
            Answer(frame, where, every.logits, every.iou, every.object_score, several)
        )
        best = 1 + every.iou[:, 1:].argmax(dim=1) if several else torch.zeros_like(where)
        objects = torch.arange(len(where), device=where.device)
        pointer = network.object_pointer_proj(every.tokens[objects, best])
        return Chosen(every.logits[objects, best], every.object_score, pointer)

    def _corrected(
        self, prompt: PromptBatch, chosen: Chosen, frame: int, where: Tensor
    ) -> PromptBatch:
        """The prompt with one more click where the mask is wrong, and the mask itself."""
        logits = chosen.logits.detach()
        point, label = corrective_clicks(
            logits, self.batch.target[where, frame], self._cell_px(), self.generator
        )
        return PromptBatch(
            torch.cat((prompt.points, point.unsqueeze(1)), dim=1),
            torch.cat((prompt.labels, label.unsqueeze(1)), dim=1),
            logits.clamp(-PREVIOUS_LIMIT, PREVIOUS_LIMIT),
        )

    def _cell_px(self) -> int:
        return self.network.config.image_size // self.network.config.mask_size[0]

    def _remember(self, rows: ImageFeatures, frame: int, chosen: Chosen, prompted: bool) -> None:
        network = self.network
        logits, score = chosen.logits, chosen.object_score
        if not self.plan.trust_scores:
            score = torch.where(self.batch.area_px[:, frame] > 0, 1.0, -1.0)
        if frame in self.plan.show_truth:
            logits = 20 * (self.batch.target[:, frame] - 0.5)
        present = score > 0
        logits = torch.where(present[:, None, None], logits, ABSENT_LOGIT)
        pointer = torch.where(present[:, None], chosen.pointer, network.no_object_pointer)
        hard = torch.full_like(present, prompted)
        mask = network.encode_memory(rows, logits, score, hard)
        index = self.batch.frame_indices[frame]
        self.remembered.append(Remembered(index, prompted, mask, pointer))

    def _readout(self, frame: int) -> Readout:
        """What every object reads on a frame, as MemoryBank.recall has it for a long video."""
        config, now = self.network.config, self.batch.frame_indices[frame]
        last_row = config.num_maskmem - 1
        masks: list[tuple[Tensor, int]] = []
        pointers: list[tuple[Tensor, int]] = []
        for memory in self.remembered:
            distance = now - memory.frame_index
            if memory.prompted:
                masks.append((memory.mask, last_row))
                pointers.append((memory.pointer, distance))
                continue
            if distance <= last_row:
                masks.append((memory.mask, distance - 1))
            if distance < config.max_object_pointers_in_encoder:
                pointers.append((memory.pointer, distance))
        count = len(self.batch.clip)
        device = self.batch.clip.device
        span = config.max_object_pointers_in_encoder - 1
        offsets = torch.tensor([d / span for _, d in pointers], device=device)
        rows = torch.tensor([row for _, row in masks], device=device)
        return Readout(
            masks=torch.stack([mask for mask, _ in masks], dim=1),
            time_rows=rows.expand(count, -1),
            pointers=torch.stack([pointer for pointer, _ in pointers], dim=1),
            pointer_offsets=offsets.expand(count, -1),
            pointer_valid=torch.ones((count, len(pointers)), dtype=torch.bool, device=device),
        )


def corrective_clicks(
    logits: Tensor, target: Tensor, cell_px: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A click on a wrong pixel of each mask: points (N, 2) in model pixels, labels (N,).

    logits, target: (N, h, w) at cell_px model pixels a cell. Any wrong pixel is as likely as any
    other; where none is wrong, any pixel of the object is, and without an object, any at all.
    """
    inside, truth = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    wrong = inside ^ truth
    weight = wrong.float() + 1e-3 * truth + 1e-6
    chance = torch.rand(weight.shape, generator=generator).to(weight.device)
    cell = (weight.log() - (-chance.clamp(1e-9, 1 - 1e-7).log()).log()).argmax(dim=1)
    width = logits.shape[-1]
    place = torch.stack((cell % width, cell // width), dim=1).float()
    shift = torch.rand(place.shape, generator=generator).to(place.device)
    label = truth.gather(1, cell[:, None]).squeeze(1).long()
    return (place + shift) * cell_px - 0.5, label


def normalised_frames(batch: ClipBatch) -> Tensor:
    """All B·T frames as the processor of frames makes them: (B·T, 3, S, S) fp32."""
    return Sam2VideoVideoProcessor(batch.pixels.shape[-1]).normalise(batch.pixels.flatten(0, 1))
