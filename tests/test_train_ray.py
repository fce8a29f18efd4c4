"""Two workers of a Ray cluster train as one process would with the mean of their gradients."""

from pathlib import Path

import pytest
import torch
from small_network import small_config
from training import STEPS, tiny_config

from sam2model import Sam2VideoModel
from sam2model.track_step import Sam2Network
from workflows.train import clip_source, starting_network
from workflows.train_loop import StepBatches, Trainer, Worker

pytest_plugins = ["local_ray"]
pytestmark = pytest.mark.cluster


def test_two_workers_equal_one_with_the_mean_of_their_gradients(
    tmp_path: Path, local_ray: None
) -> None:
    from workflows.train_ray import train_on_ray

    config = tiny_config(tmp_path, "workers.count=2", "workers.cpus_each=0.5")
    summary = train_on_ray(config)
    assert summary["steps"] == STEPS

    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    source = clip_source(config, 64)
    other = Trainer(config, starting_network(config))

    def mean_with_the_other(parameters: list[torch.nn.Parameter]) -> None:
        """Of these gradients and those that the second worker's batch gives the same weights."""
        second = Trainer(config, Sam2Network(small_config()), Worker())
        second.network.load_state_dict(trainer.network.state_dict())
        second.step = trainer.step
        kept: list[torch.Tensor] = []

        def keep(theirs: list[torch.nn.Parameter]) -> None:
            kept.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in theirs)

        second.worker = Worker(average=keep)
        second.train_step(StepBatches(config, source, second.network, 1)[second.step])
        for mine, grad in zip(parameters, kept, strict=True):
            own = torch.zeros_like(mine) if mine.grad is None else mine.grad
            mine.grad = (own + grad) / 2

    trainer = Trainer(config, other.network, Worker(average=mean_with_the_other))
    batches = StepBatches(config, source, trainer.network, 0)
    while trainer.step < STEPS:
        trainer.train_step(batches[trainer.step])
    model = Sam2VideoModel.from_pretrained(Path(config.output) / "model")
    for name, value in trainer.averaged().state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], rtol=1e-2, atol=1e-3), name
