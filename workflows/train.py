"""Training, from a configuration to a folder with weights, figures and a way to go on.

Knows nothing of command lines or clusters. The folder holds `config.yaml`, `resume.pt` (to go on),
`steps.jsonl` (what every step cost), `validation.jsonl`, a page of plots and `model/`, which
`from_pretrained` reads. The same command goes on where it was stopped.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sam2model import (
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)
from sam2model.track_step import Sam2Network
from workflows.checkpoints import local_checkpoint
from workflows.config import ConfigError, dump_config, load_config
from workflows.storage import Storage
from workflows.train_clips import ClipSource, DrawnClips, KeptClips, MixedClips
from workflows.train_config import SourceConfig, TrainConfig
from workflows.train_loop import StepBatches, Trainer, Worker, total_steps
from workflows.train_plots import write_plots
from workflows.train_recorded import RecordedClips, videos_of_dataset, videos_of_folder
from workflows.train_start import begin_by_place
from workflows.train_unroll import ClipBatch
from workflows.train_validation import check_prompts, score_held_out

log = logging.getLogger(__name__)

VALIDATION_SEED = 1_000_000  # of the first scene; training takes seeds below
LOG_STEPS = 20
LOG_NAMES = ("steps.jsonl", "validation.jsonl")


def run_training(config: TrainConfig, worker: Worker | None = None) -> dict[str, object]:
    """Train to the end of the last phase, from where the folder left off; a summary.

    Raises ConfigError where the folder holds another run.
    """
    worker = worker or Worker()
    torch.set_num_threads(config.workers.threads)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    first = worker.rank == 0
    trainer = Trainer(config, starting_network(config), worker)
    others = soup_weights(config, trainer.network) if first else []
    if first:
        _begin_folder(config, output)
    resume = output / "resume.pt"
    state = worker.read(resume) if worker.read is not None else _existing(resume)
    if state is not None:
        trainer.load(state)
        log.info("going on from step %d", trainer.step)
    source = clip_source(config, config.data.size or trainer.network.config.image_size)
    began, start = time.perf_counter(), trainer.step
    figures: dict[str, float] = {}
    if first:
        _forget_after(trainer.step, output)
    for batch in step_batches(config, source, trainer):
        figures = trainer.train_step(batch)
        if not first:
            continue
        _note(output / "steps.jsonl", {"step": trainer.step, **figures})
        last = trainer.step == total_steps(config)
        if trainer.step % LOG_STEPS == 0 or last:
            rate = (trainer.step - start) / (time.perf_counter() - began)
            log.info(
                "step %d of %d, %.2f steps/s, loss %.3f, %.0f s left",
                *(trainer.step, total_steps(config), rate, figures["total"]),
                (total_steps(config) - trainer.step) / rate,
            )
        if trainer.step % config.validation_steps == 0 or last:
            _validate(trainer, output)
        if trainer.step % config.checkpoint_steps == 0 or last:
            trainer.save(resume)
    summary: dict[str, object] = {"steps": trainer.step, **figures}
    if first:
        summary |= _finish(trainer, others, output)
    return summary


def one_worker(config: TrainConfig) -> Worker:
    """This process alone, on its GPU where the configuration asks for one."""
    if not config.workers.gpus_each:
        return Worker()
    if not torch.cuda.is_available():
        raise ConfigError("workers.gpus_each is 1 and there is no GPU here; 0 trains on processors")
    return Worker(device=torch.device("cuda"))


def step_batches(config: TrainConfig, source: ClipSource, trainer: Trainer) -> Iterator[ClipBatch]:
    """The batches from the trainer's step on, made ahead in other processes."""
    batches = StepBatches(config, source, trainer.network, trainer.worker.rank)
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(trainer.step, total_steps(config)),
            num_workers=config.data.loaders,
            prefetch_factor=4,
        )
    )


def starting_network(config: TrainConfig) -> Sam2Network:
    """The network before the first step."""
    start = config.start
    if start.checkpoint is not None:
        model = _loaded(start.checkpoint, config)
        network = Sam2Network(_sized(model.config, start.image_size))
        network.load_state_dict(model.state_dict())
        return network
    assert start.shape is not None
    shape = Sam2VideoConfig.from_json_file(Path(start.shape))
    network = Sam2Network(_sized(shape, start.image_size))
    begin_by_place(network)
    return network


@dataclass(frozen=True, slots=True)
class Weights:
    """Of another model of the same shape, and their share of a mean."""

    share: float
    tensors: dict[str, Tensor]


def soup_weights(config: TrainConfig, network: Sam2Network) -> list[Weights]:
    """What the finished weights are averaged with. Raises ConfigError where the shapes differ."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    others = []
    for part in config.soup:
        tensors = _loaded(part.checkpoint, config).state_dict()
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        for name in sorted(wanted | found):
            if wanted.get(name) != found.get(name):
                raise ConfigError(
                    f"soup: {part.checkpoint}: {name} is {found.get(name)}; "
                    f"wanted {wanted.get(name)}, as in the model that is trained"
                )
        others.append(Weights(part.share, tensors))
    return others


@torch.no_grad()
def stirred(network: Sam2Network, others: list[Weights]) -> Sam2Network:
    """The network itself, its weights now the mean (model soup, arXiv 2203.05482)."""
    rest = 1 - sum(other.share for other in others)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.mul_(rest)
            for other in others:
                value.add_(other.tensors[name].to(value), alpha=other.share)
    return network


def _loaded(checkpoint: str, config: TrainConfig) -> Sam2VideoModel:
    """The model of a checkpoint, wherever it is kept."""
    return Sam2VideoModel.from_pretrained(
        local_checkpoint(checkpoint, Storage(config.storage)).path
    )


def _sized(config: Sam2VideoConfig, image_size: int | None) -> Sam2VideoConfig:
    return config if image_size is None else config.at_image_size(image_size)


def clip_source(config: TrainConfig, size: int) -> ClipSource:
    """All clips to learn from, kept on disk once they are made."""
    kept = [_kept_source(config, source, size) for source in config.data.sources]
    return MixedClips(kept, [source.share for source in config.data.sources])


def _kept_source(config: TrainConfig, source: SourceConfig, size: int) -> ClipSource:
    spool = Path(config.data.spool or tempfile.gettempdir(), "maskmill-clips")
    frames, storage = config.data.frames, Storage(config.storage)
    if source.kind == "drawn":
        drawn = DrawnClips(source.seed, source.clips, frames, size)
        return KeptClips(drawn, spool)
    if source.kind == "dataset":
        assert source.dataset is not None
        videos = videos_of_dataset(source.dataset, storage, source.reviews)
    else:
        assert source.annotations is not None and source.videos is not None
        videos = videos_of_folder(
            Path(source.annotations), source.videos, storage, spool / "encoded"
        )
    recorded = RecordedClips(videos, storage, source.clips, frames, size, source.seed)
    return KeptClips(recorded, spool)


def save_model(network: Sam2Network, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A folder that `from_pretrained` reads, with its processor's settings."""
    model = Sam2VideoModel(network.config)
    model.load_state_dict(network.state_dict())
    model.to(dtype=dtype).save_pretrained(folder)
    Sam2VideoProcessor(Sam2VideoVideoProcessor(network.config.image_size)).save_pretrained(folder)


def _begin_folder(config: TrainConfig, output: Path) -> None:
    """Make the folder and write the configuration. Raises ConfigError over another run's."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "config.yaml"
    if path.exists() and replace(load_config(TrainConfig, path), output=config.output) != config:
        raise ConfigError(
            f"{output}: holds a run with another configuration; wanted the one in config.yaml "
            "to go on, or another output"
        )
    path.write_text(dump_config(config))


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _forget_after(step: int, output: Path) -> None:
    """Take out of the logs what came after the checkpoint: those steps come again."""
    for name in LOG_NAMES:
        if (output / name).exists():
            lines = (output / name).read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            (output / name).write_text("".join(kept))


def _note(path: Path, row: dict[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _validate(trainer: Trainer, output: Path) -> None:
    """Note how well the averaged weights do on scenes that training never shows."""
    config, size = trainer.config, trainer.network.config.image_size
    spool = Path(config.data.spool or tempfile.gettempdir(), "maskmill-clips")
    source = KeptClips(DrawnClips(VALIDATION_SEED, 24, 8, size), spool)
    figures = check_prompts(trainer.averaged(), source)
    log.info("validation at step %d: %s", trainer.step, figures)
    _note(output / "validation.jsonl", {"step": trainer.step, **figures})
    write_plots(output)


def _finish(trainer: Trainer, others: list[Weights], output: Path) -> dict[str, object]:
    """Save the model and score what was saved."""
    model = output / "model"
    save_model(stirred(trainer.averaged(), others), model)
    summary: dict[str, object] = {"model": str(model)}
    if trainer.config.final_videos:
        scores = score_held_out(model, range(trainer.config.final_videos))
        (output / "held_out.json").write_text(json.dumps(scores, indent=2) + "\n")
        summary["held_out"] = scores
    return summary
