"""The same training on several workers of a Ray cluster. Knows nothing of networks or data.

Each worker takes batches of its own; gradients are averaged before every step, so the weights of
all workers stay equal. The first worker writes the folder; a worker that dies takes the group
down, and the group goes on from the last checkpoint.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from workflows.ray_session import connected
from workflows.train import run_training
from workflows.train_config import TrainConfig
from workflows.train_loop import Worker

ATTEMPTS = 3  # of the group, after workers that died


def train_on_ray(config: TrainConfig) -> dict[str, Any]:
    """Train with config.workers.count workers; the summary of the first."""
    workers = config.workers
    folder = Path(config.output).resolve()
    trainer = TorchTrainer(
        _train_on_worker,  # type: ignore[arg-type]  # Ray's annotation forgets that it may return
        train_loop_config={"config": replace(config, output=str(folder))},
        torch_config=TorchConfig(backend="nccl" if workers.gpus_each else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=bool(workers.gpus_each),
            resources_per_worker={"CPU": workers.cpus_each, "GPU": workers.gpus_each},
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=ATTEMPTS),
        ),
    )
    with connected():
        summary = trainer.fit().return_value  # type: ignore[attr-defined]  # not of Ray's base class
    return dict(summary)


def _train_on_worker(given: dict[str, Any]) -> dict[str, object]:
    worker = Worker(
        rank=dist.get_rank(),
        count=dist.get_world_size(),
        device=ray.train.torch.get_device(),
        average=average_gradients,
        read=first_workers_bytes,
    )
    return run_training(given["config"], worker)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean of all workers' gradients, in place; a weight that a worker left out counts as 0."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for parameter in parameters:
        size = parameter.numel()
        parameter.grad = flat[start : start + size].view_as(parameter).clone()
        start += size


def first_workers_bytes(path: Path) -> io.BytesIO | None:
    """A file of the first worker, wherever the others run; None where it has none."""
    held: list[bytes | None] = [None]
    if dist.get_rank() == 0 and path.exists():
        held = [path.read_bytes()]
    dist.broadcast_object_list(held, src=0)
    return None if held[0] is None else io.BytesIO(held[0])
