"""The training loop: batches in, weights out; stops anywhere and goes on as if it had not.

Knows nothing of clusters or command lines; `Worker.average` is the one place where workers meet.
"""

import io
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from sam2model.configuration import Sam2VideoConfig
from sam2model.track_step import Sam2Network
from workflows.train_batches import BatchShape, make_batch
from workflows.train_clips import ClipSource
from workflows.train_config import PhaseConfig, TrainConfig
from workflows.train_losses import Losses, LossWeights, answer_losses
from workflows.train_unroll import ClipBatch, UnrollPlan, normalised_frames, unroll

log = logging.getLogger(__name__)

CERTAIN_PX = 16  # fewer visible pixels than this leave open whether an object is in the frame


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes that train together; by default the only one.

    average: replaces gradients by their mean over all workers. read: a file as the first worker
    has it, or None where it has none.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    average: Callable[[list[nn.Parameter]], None] | None = None
    read: Callable[[Path], io.BytesIO | None] | None = None


def phase_at(config: TrainConfig, step: int) -> tuple[PhaseConfig, int]:
    """The phase of a step, counted from 0, as that step has it, and the step within it."""
    within = step
    for phase in config.phases:
        if within < phase.steps:
            return _as_pictures(phase, config.seed, step), within
        within -= phase.steps
    raise ValueError(f"step {step} past the last phase")


def _as_pictures(phase: PhaseConfig, seed: int, step: int) -> PhaseConfig:
    """The phase with single pictures for clips, if this is one of its steps that has them."""
    pictures = phase.pictures
    if pictures is None or np.random.default_rng([seed, step, 5]).random() >= pictures.share:
        return phase
    return replace(
        phase,
        frames=1,
        clips=pictures.clips,
        objects=pictures.objects,
        prompts_each=pictures.prompts_each,
    )


def total_steps(config: TrainConfig) -> int:
    return sum(phase.steps for phase in config.phases)


def learning_rate(phase: PhaseConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to a share of the highest."""
    if step < phase.warmup_steps:
        return phase.learning_rate * (step + 1) / phase.warmup_steps
    done = (step - phase.warmup_steps) / max(phase.steps - phase.warmup_steps, 1)
    low = phase.final_share
    return phase.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def plan_of(phase: PhaseConfig, seed: int, step: int) -> UnrollPlan:
    """What is left to chance in a step's unroll, decided by its number."""
    rng = np.random.default_rng([seed, step, 7])
    corrected: tuple[int, ...] = ()
    if phase.frames > 1 and rng.random() < phase.correction:
        corrected = (int(rng.integers(1, phase.frames)),)
    return UnrollPlan(
        rounds=int(rng.integers(0, phase.rounds + 1)),
        corrected=corrected,
        trust_scores=bool(rng.random() >= phase.true_scores),
        show_truth=tuple(f for f in range(phase.frames) if rng.random() < phase.truth_in_memory),
        seed=int(rng.integers(2**31)),
    )


def batch_shape(config: TrainConfig, phase: PhaseConfig, model: Sam2VideoConfig) -> BatchShape:
    size = model.image_size
    return BatchShape(
        clips=phase.clips,
        frames=phase.frames,
        objects=phase.objects,
        kinds=(phase.click, phase.box, phase.mask),
        min_area_px=config.data.min_area_px,
        size=size,
        cell_px=size // model.mask_size[0],
        box_jitter=phase.box_jitter,
        absence=phase.absence,
        still=phase.still,
        prompts_each=phase.prompts_each,
    )


class StepBatches(Dataset[ClipBatch]):
    """The batch of any step, for loaders in other processes."""

    def __init__(
        self, config: TrainConfig, source: ClipSource, network: Sam2Network, rank: int
    ) -> None:
        self._config, self._source, self._rank = config, source, rank
        self._model = network.config

    def __len__(self) -> int:
        return total_steps(self._config)

    def __getitem__(self, step: int) -> ClipBatch:
        phase, _ = phase_at(self._config, step)
        seed = self._config.seed + 1_000_003 * self._rank
        shape = batch_shape(self._config, phase, self._model)
        return make_batch(self._source, shape, seed, step)


def batch_losses(
    network: Sam2Network, batch: ClipBatch, plan: UnrollPlan, weights: LossWeights, frozen: bool
) -> Losses:
    """The losses of all answers of a batch, each object's answer counting the same."""
    pixels = normalised_frames(batch)
    with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
        image = network.encode_images(pixels)
    parts: list[Losses] = []
    sizes: list[int] = []
    for answer in unroll(network, image, batch, plan):
        area = batch.area_px[answer.where, answer.frame]
        certain = (area == 0) | (area >= CERTAIN_PX)
        target = batch.target[answer.where, answer.frame]
        parts.append(answer_losses(answer, target, area > 0, certain, weights))
        sizes.append(len(answer.where))
    parts_of_all = torch.tensor(sizes, dtype=torch.float32) / sum(sizes)
    names = Losses.__slots__
    return Losses(
        *(
            sum(
                (w * getattr(p, n) for w, p in zip(parts_of_all, parts, strict=True)),
                torch.zeros(()),
            )
            for n in names
        )
    )


def parameter_groups(network: Sam2Network, weight_decay: float) -> list[dict[str, Any]]:
    """Four groups: the encoder and the rest, each with and without decay of its weights."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, value in network.named_parameters():
        encoder = name.startswith("vision_encoder.")
        decays = value.dim() > 1 and "embed" not in name and "token" not in name
        groups.setdefault((encoder, decays), []).append(value)
    return [
        {"params": values, "encoder": encoder, "weight_decay": weight_decay if decays else 0.0}
        for (encoder, decays), values in sorted(groups.items())
    ]


class Trainer:
    """A network in training, with everything that going on later needs."""

    def __init__(
        self,
        config: TrainConfig,
        network: Sam2Network,
        worker: Worker | None = None,
    ) -> None:
        self.config, self.worker = config, worker or Worker()
        self.device = self.worker.device
        self.network = network.to(self.device).train()
        self.average = {n: p.detach().clone() for n, p in network.named_parameters()}
        self.optimiser = torch.optim.AdamW(
            parameter_groups(network, config.optimiser.weight_decay),
            lr=1.0,
            betas=(0.9, config.optimiser.beta2),
        )
        self.step = 0

    def train_step(self, batch: ClipBatch) -> dict[str, float]:
        """One step of the optimiser; what it cost, part by part."""
        phase, within = phase_at(self.config, self.step)
        rate = learning_rate(phase, within)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * (phase.encoder_scale if group["encoder"] else 1.0)
        plan = plan_of(phase, self.config.seed, self.step)
        half = self.config.precision == "bfloat16"
        kernels = list(_ANY_KERNEL)
        if self.device.type == "cpu":
            # The fused attention's backward pass is many times slower there. The plain one would
            # do its bf16 products in fp32, but for this setting, which is of processors too.
            kernels = [SDPBackend.MATH]
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        with sdpa_kernel(kernels):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                losses = batch_losses(
                    self.network,
                    batch.to(self.device),
                    plan,
                    phase.losses or self.config.losses,
                    phase.encoder_scale == 0,
                )
            self.optimiser.zero_grad(set_to_none=True)
            losses.total.backward()
        if self.worker.average is not None:
            self.worker.average(list(self.network.parameters()))
        trained = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, self.config.optimiser.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        figures = {name: float(getattr(losses, name).detach()) for name in Losses.__slots__}
        return {**figures, "gradient_norm": float(norm), "learning_rate": rate}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.optimiser.average, (1 + self.step) / (10 + self.step))
        for name, value in self.network.named_parameters():
            self.average[name].lerp_(value, 1 - decay)

    def averaged(self) -> Sam2Network:
        """A network in evaluation with the averaged weights."""
        copy = Sam2Network(self.network.config).to(self.device)
        copy.load_state_dict({**self.network.state_dict(), **self.average})
        return copy.eval()

    def save(self, path: Path) -> None:
        """Everything that `load` needs; there whole or not at all."""
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, file: Path | io.BytesIO) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


_ANY_KERNEL = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
