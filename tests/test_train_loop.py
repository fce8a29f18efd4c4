"""The loop of training: it learns, it goes on exactly where it stopped, it averages workers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_network import small_config
from torch import nn
from training import STEPS, one_phase, tiny_config

from sam2model import Sam2VideoModel, Sam2VideoProcessor
from sam2model.memory_attention import MemoryAttentionLayer
from sam2model.track_step import Sam2Network
from workflows.config import ConfigError
from workflows.train import clip_source, run_training, save_model, starting_network
from workflows.train_batches import make_batch
from workflows.train_config import PicturesConfig, SoupConfig, TrainConfig
from workflows.train_loop import (
    StepBatches,
    Trainer,
    Worker,
    batch_shape,
    learning_rate,
    phase_at,
)
from workflows.train_losses import mask_iou
from workflows.train_scenes import Clip
from workflows.train_start import begin_by_place
from workflows.train_unroll import UnrollPlan, normalised_frames, unroll


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order every time
    yield
    torch.set_num_threads(before)


def begun(config: TrainConfig) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(config, starting_network(config))


def train_to(trainer: Trainer, config: TrainConfig, stop: int) -> None:
    batches = StepBatches(config, clip_source(config, 64), trainer.network, 0)
    while trainer.step < stop:
        trainer.train_step(batches[trainer.step])


def test_a_run_taken_up_again_has_the_numbers_of_one_that_never_stopped(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    whole = begun(config)
    train_to(whole, config, STEPS)

    stopped = begun(config)
    train_to(stopped, config, 3)
    stopped.save(tmp_path / "resume.pt")
    torch.manual_seed(99)  # nothing that goes on may come from this process
    taken_up = Trainer(config, Sam2Network(small_config()))
    taken_up.load(tmp_path / "resume.pt")
    train_to(taken_up, config, STEPS)

    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, taken_up.network.state_dict()[name]), name
    for name, value in whole.average.items():
        assert torch.equal(value, taken_up.average[name]), name


def test_the_command_goes_on_and_leaves_a_model_that_loads(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "checkpoint_steps=3")
    trainer = begun(config)
    output = Path(config.output)
    train_to(trainer, config, 3)
    output.mkdir()
    trainer.save(output / "resume.pt")
    lines = [{"step": step, "total": 0.0} for step in (1, 2, 3, 4)]  # the last was cut off
    (output / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    summary = run_training(config)

    assert summary["steps"] == STEPS
    steps = [json.loads(line)["step"] for line in (output / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    train_to(trainer, config, STEPS)
    model = Sam2VideoModel.from_pretrained(output / "model")
    for name, value in trainer.averaged().state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], rtol=1e-2, atol=1e-4), name
    assert Sam2VideoProcessor.from_pretrained(output / "model").target_size == 64
    assert "</svg>" in (output / "training.html").read_text()


def test_a_run_may_have_larger_pictures_than_its_start_and_its_clips(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "start.image_size=96", "data.size=64")

    run_training(config)

    model = Path(config.output) / "model"
    assert Sam2VideoModel.from_pretrained(model).config.image_size == 96
    assert Sam2VideoProcessor.from_pretrained(model).target_size == 96
    assert (tmp_path / "spool/maskmill-clips/drawn-0-6-4-64/clips.bin").exists()
    further = replace(config.start, checkpoint=str(model), shape=None, image_size=128)
    network = starting_network(replace(config, start=further))
    assert network.config.mask_size == (32, 32)


def test_the_finished_weights_are_averaged_with_those_of_runs_before(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    torch.manual_seed(7)
    before = {name: starting_network(config) for name in ("one", "two")}
    for name, network in before.items():
        save_model(network, tmp_path / name, torch.float32)
    shares = {"one": 0.25, "two": 0.5}
    soup = tuple(SoupConfig(str(tmp_path / name), share) for name, share in shares.items())

    trainer = begun(config)
    train_to(trainer, config, STEPS)
    run_training(replace(config, soup=soup))

    mixed = Sam2VideoModel.from_pretrained(Path(config.output) / "model").state_dict()
    for name, own in trainer.averaged().state_dict().items():
        parts = [share * before[other].state_dict()[name] for other, share in shares.items()]
        wanted = 0.25 * own + sum(parts) if own.is_floating_point() else own
        assert torch.allclose(mixed[name], wanted, rtol=1e-2, atol=1e-4), name


def test_a_soup_of_another_shape_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    wanted = replace(config, soup=(SoupConfig("demo", 0.5),))
    with pytest.raises(ConfigError, match="soup: demo: .* is .*; wanted .*"):
        run_training(wanted)
    assert not Path(config.output).exists()  # so that the corrected command may begin there


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    output = Path(config.output)
    output.mkdir()
    run_training(replace(config, phases=(replace(config.phases[0], steps=1),)))
    before = (output / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="another configuration"):
        run_training(config)
    assert (output / "config.yaml").read_text() == before


def test_it_learns_one_clip_by_heart(tmp_path: Path) -> None:
    phase = one_phase(frames=3, click=0.5, box=0.5, mask=0.0, true_scores=1.0)
    config = replace(tiny_config(tmp_path), phases=(phase,))
    torch.manual_seed(0)
    trainer = begun(config)
    shape = replace(batch_shape(config, phase, trainer.network.config), vary=False)
    batch = make_batch(clip_source(config, 64), shape, 0, 1)

    def worst_iou() -> float:
        network = trainer.network.eval()
        with torch.no_grad():
            image = network.encode_images(normalised_frames(batch))
            answers = unroll(network, image, batch, UnrollPlan())
        trainer.network.train()
        return min(
            float(mask_iou(a.logits[:, 0], batch.target[a.where, a.frame]).mean()) for a in answers
        )

    before = worst_iou()
    for _ in range(150):
        trainer.train_step(batch)
    assert before < 0.3
    assert worst_iou() > 0.5


def test_a_frozen_encoder_keeps_its_weights(tmp_path: Path) -> None:
    phase = one_phase(steps=2, encoder_scale=0.0, click=0.5, box=0.5, mask=0.0)
    config = replace(tiny_config(tmp_path), phases=(phase,))
    trainer = begun(config)
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters()}
    train_to(trainer, config, 2)
    moved = {n for n, p in trainer.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not any(name.startswith("vision_encoder.") for name in moved)


def test_the_learning_rate_rises_falls_and_knows_its_phase(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert [phase_at(config, step)[0].name for step in range(4)] == ["images"] * 2 + ["videos"] * 2
    assert phase_at(config, 3)[1] == 1
    phase = one_phase(steps=100, warmup_steps=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_phase_of_clips_has_steps_of_single_pictures_as_often_as_it_says(tmp_path: Path) -> None:
    pictures = PicturesConfig(share=0.25, clips=3, objects=2, prompts_each=2)
    phase = one_phase(steps=400, clips=2, frames=3, correction=1.0, pictures=pictures)
    config = replace(tiny_config(tmp_path), phases=(phase,))
    steps = [phase_at(config, step)[0] for step in range(400)]
    of_pictures = [n for n, found in enumerate(steps) if found.frames == 1]
    assert 0.2 < len(of_pictures) / 400 < 0.3
    assert {(steps[n].clips, steps[n].objects, steps[n].prompts_each) for n in of_pictures} == {
        (3, 2, 2)
    }
    assert all(found == phase for n, found in enumerate(steps) if n not in of_pictures)

    trainer = begun(config)
    batches = StepBatches(config, clip_source(config, 64), trainer.network, 0)
    for step in (of_pictures[0], next(n for n in range(400) if n not in of_pictures)):
        trainer.step = step
        batch = batches[step]
        assert tuple(batch.pixels.shape[:2]) == (steps[step].clips, steps[step].frames)
        assert trainer.train_step(batch)["total"] > 0


def test_workers_see_other_batches_and_their_gradients_are_averaged(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    source, network = clip_source(config, 64), starting_network(config)
    first, second = (StepBatches(config, source, network, rank)[0] for rank in (0, 1))
    assert not torch.equal(first.pixels, second.pixels)

    asked: list[int] = []

    def average(parameters: list[nn.Parameter]) -> None:
        asked.append(len(parameters))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    trainer = Trainer(config, network, Worker(average=average))
    before = trainer.network.mask_decoder.conv_s0.weight.detach().clone()
    trainer.train_step(first)
    assert asked == [len(list(network.parameters()))]
    decay = 1 - 1e-3 * config.optimiser.weight_decay
    assert torch.allclose(trainer.network.mask_decoder.conv_s0.weight, before * decay)


class BrokenClips:
    """A source whose clips cannot be had."""

    name = "broken"

    def __len__(self) -> int:
        return 3

    def clip(self, index: int) -> Clip:
        raise OSError(f"clip {index}")


def test_a_clip_that_cannot_be_read_ends_the_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    batches = StepBatches(config, BrokenClips(), starting_network(config), 0)
    with pytest.raises(OSError, match="clip"):
        batches[0]


@torch.no_grad()
def test_a_click_means_its_place_from_the_first_step() -> None:
    torch.manual_seed(0)
    network = Sam2Network(small_config()).eval()
    changes = []
    for begin in (False, True):
        if begin:
            begin_by_place(network)
            network.eval()
        decoder, prompts = network.mask_decoder, network.prompt_encoder
        image = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1)) * 0.1
        maps = []
        for x in (8.0, 56.0):
            click = prompts.embed_points(torch.tensor([[[x, 8.0]]]), torch.tensor([[1]]))
            constants = decoder.derived()
            tokens = torch.cat((constants.output_tokens[None], click), dim=1)
            _, looked = decoder.transformer(
                tokens, image + prompts.embed_mask(None), constants.encodings
            )
            maps.append(looked[0])
        moved = (maps[0] - maps[1]).norm(dim=-1).view(4, 4)
        changes.append(float((moved[0, 0] + moved[0, 3]) / moved[2:].sum()))
    assert changes[1] > 2 * changes[0]


@torch.no_grad()
def test_a_frame_reads_the_memory_of_its_own_place_from_the_first_step() -> None:
    torch.manual_seed(0)
    config = small_config(
        image_size=256,
        **{
            "vision_config": small_config().to_dict()["vision_config"]
            | {"backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]]},
            "prompt_encoder_config": {"hidden_size": 32, "image_size": 256},
            "memory_attention_rope_feat_sizes": [16, 16],
        },
    )
    network = Sam2Network(config).eval()
    begin_by_place(network)
    attention = network.memory_attention
    layer = attention.layers[0]
    assert isinstance(layer, MemoryAttentionLayer)
    cross, turns = layer.cross_attn_image, attention.derived()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 256, 32, generator=generator)
    memory = torch.randn(1, 256, 16, generator=generator)
    q = cross.turned(layer.layer_norm2(tokens), cross.fold_query(), turns)
    k = cross.turned(memory, cross.fold_key(), turns)
    weights = (q @ k.transpose(1, 2)).softmax(dim=-1)[0]
    place = torch.stack((torch.arange(256) % 16, torch.arange(256) // 16), dim=1).float()
    near = torch.cdist(place, place) < 2.5
    assert (weights * near).sum(dim=1).mean() > 3 * near.float().mean()


@pytest.mark.gpu
def test_a_step_on_a_gpu_costs_what_it_costs_on_a_processor(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    costs = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(config.seed)
        trainer = Trainer(config, starting_network(config), Worker(device=torch.device(device)))
        batches = StepBatches(config, clip_source(config, 64), trainer.network, 0)
        costs.append([trainer.train_step(batches[step])["total"] for step in range(STEPS)])
    assert costs[1] == pytest.approx(costs[0], rel=0.02)
