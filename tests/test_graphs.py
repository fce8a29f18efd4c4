"""Work recorded once and replayed on buffers of its own; and that steps can be recorded at all.

There is no GPU here: a stand-in records by remembering the work, and replays it into the same
outputs, as a graph does. What only a GPU can show is marked `gpu`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_network import random_pixels, random_readout, small_network
from test_engine import (
    LABELLINGS,
    PROCESSOR,
    SEED,
    FakeVideo,
    WatchedEngine,
    assert_same_logits,
    assert_same_masks,
    click,
    is_at_rest,
    label,
    wait_until,
)
from torch import Tensor

from sam2model.attention import force_kernel
from sam2model.engine import EngineOptions
from sam2model.graphs import GraphRunner, tensors_of
from sam2model.mask_ops import mask_areas, mask_boxes_xyxy, stability_scores, upsample_logits
from sam2model.memory_bank import Readout
from sam2model.rle import encode_runs
from sam2model.semantics import LABELLING
from sam2model.stepper import Stepper
from sam2model.track_step import ImageFeatures, PromptBatch, Sam2Network, StepOutput


class StandIn:
    """Records by remembering; `outputs` are always the same tensors."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self.outputs = work, work()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for mine, new in zip(tensors_of(self.outputs), tensors_of(self._work()), strict=True):
            mine.copy_(new)


@dataclass(frozen=True)
class Pair:
    left: Tensor
    right: Tensor | None


def add(pair: Pair, other: Tensor) -> tuple[Tensor, Pair]:
    total = pair.left + other + (0 if pair.right is None else pair.right)
    return total, Pair(2 * total, None)


def run(runner: GraphRunner, left: float, right: float | None = None, size: int = 3) -> list[float]:
    pair = Pair(torch.full((size,), left), None if right is None else torch.full((size,), right))
    total, twice = runner.run("add", add, pair, torch.ones(size))
    assert twice.right is None
    return [float(total[0]), float(twice.left[-1])]


# Recording.


def test_replays_give_what_the_work_itself_gives() -> None:
    runner = GraphRunner(StandIn, after=2)

    assert [run(runner, x) for x in (1.0, 2.0, 3.0, 4.0)] == [
        [x + 1, 2 * x + 2] for x in (1, 2, 3, 4)
    ]
    assert len(runner.keys) == 1


def test_work_is_recorded_only_after_it_was_done_some_times_as_it_is() -> None:
    runner = GraphRunner(StandIn, after=2)
    recorded = []
    for _ in range(4):
        run(runner, 1.0)
        recorded.append(len(runner.keys))

    assert recorded == [0, 0, 1, 1]


def test_other_shapes_and_missing_inputs_are_other_recordings() -> None:
    runner = GraphRunner(StandIn, after=0)
    for _ in range(2):
        assert run(runner, 1.0) == [2.0, 4.0]
        assert run(runner, 1.0, 5.0) == [7.0, 14.0]
        assert run(runner, 1.0, size=8) == [2.0, 4.0]

    assert len(runner.keys) == 3


def test_outputs_are_not_overwritten_by_later_replays() -> None:
    runner = GraphRunner(StandIn, after=0)
    first, _ = runner.run("add", add, Pair(torch.ones(3), None), torch.ones(3))
    runner.run("add", add, Pair(torch.zeros(3), None), torch.ones(3))

    assert first.tolist() == [2, 2, 2]


def test_inputs_are_not_kept_or_written_to() -> None:
    runner = GraphRunner(StandIn, after=0)
    given = torch.ones(3)
    run(runner, 0.0)
    runner.run("add", add, Pair(given, None), torch.ones(3))
    run(runner, 9.0)

    assert given.tolist() == [1, 1, 1]


def test_recordings_of_several_shapes_share_their_input_memory() -> None:
    runner = GraphRunner(StandIn, after=0)
    for size in (64, 8, 1, 32):
        run(runner, 1.0, size=size)

    held = sum(b.numel() for buffers in runner._buffers.values() for b in buffers)
    assert held == 2 * 64


def test_no_more_recordings_are_kept_than_asked_the_least_used_leave_first() -> None:
    runner = GraphRunner(StandIn, after=0, most=2)
    for size in (1, 2, 1, 3):
        run(runner, 1.0, size=size)

    assert [key[2][0][0] for key in runner.keys] == [(1,), (3,)]  # type: ignore[index]


# Steps.


def test_an_engine_of_recorded_steps_gives_the_same_masks() -> None:
    network: Sam2Network = small_network(SEED)
    runner = GraphRunner(StandIn, after=1)
    results = []
    for options in ({}, {"runner": runner}):
        engine = WatchedEngine(network, PROCESSOR, LABELLING, EngineOptions(slots=4), **options)
        masks = [
            list(label(engine, FakeVideo(18, name), prompts))
            for name, prompts in LABELLINGS.items()
        ]
        engine.close()
        results.append((masks, engine.logits))

    for one, other in zip(*(masks for masks, _ in results), strict=True):
        assert_same_masks(other, one)
    assert_same_logits(results[1][1], results[0][1])
    assert {key[0] for key in runner.keys} == {"encode", "track", "clicks"}  # type: ignore[index]


def test_steps_have_few_sizes_and_nobody_remembers_what_fills_them_up() -> None:
    sizes: set[tuple[int, int, int]] = set()

    class Noting(Sam2Network):
        def track_step(self, image: ImageFeatures, memory: Readout) -> StepOutput:
            sizes.add((*memory.masks.shape[:2], memory.pointers.shape[1]))
            return super().track_step(image, memory)

    network: Sam2Network = small_network(SEED, Noting)
    runner = GraphRunner(StandIn, after=0)
    options = EngineOptions(slots=6)
    engine = WatchedEngine(network, PROCESSOR, LABELLING, options, runner=runner)
    bank = engine.stepper.bank
    pages = []
    for objects in (1, 3, 5, 6, 7):
        prompts = [click(o, 0) for o in range(objects)]
        frames = label(engine, FakeVideo(30), prompts)
        for _ in range(20):
            next(frames)
        pages.append(bank.mask_pages_in_use)
        frames.close()
        wait_until(lambda: is_at_rest(engine))
    engine.close()

    # 7 is a step of 6 and one of 1. From 7 masks on, an object that began has all its memories.
    assert {size for size, _, _ in sizes} == {1, 4, 6}
    assert {m for _, m, _ in sizes} == set(range(1, 8))
    assert all(p == 15 + m for _, m, p in sizes)
    assert pages == [7 * objects for objects in (1, 3, 5, 6, 7)]
    assert bank.mask_pages_in_use == 0


# That a step can be recorded: nothing in it waits for the device, or depends on what it finds.


@pytest.fixture
def stepper() -> Iterator[Stepper]:
    force_kernel("sdpa")
    with torch.inference_mode():
        yield Stepper(small_network(SEED), LABELLING, keep_all=False)
    force_kernel(None)


def in_one_graph(work: Callable[..., Any], *inputs: Any) -> None:
    """Compiling to one graph fails on whatever reads a value; the answers stay the same.

    Up to the order of sums, for only what is not compiled goes through a processor in blocks.
    """
    wanted = list(tensors_of(work(*inputs)))
    got = list(tensors_of(torch.compile(work, fullgraph=True, backend="eager")(*inputs)))
    torch.compiler.reset()
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        tolerance = 2**-7 if a.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_step_that_looked_at_its_values_would_be_seen() -> None:
    with pytest.raises(Exception, match="item|Unsupported|data-dependent"):
        in_one_graph(lambda x: x * 2 if x.sum().item() > 0 else x, torch.ones(3))
    torch.compiler.reset()


def test_a_tracking_step_is_one_graph(stepper: Stepper) -> None:
    in_one_graph(
        stepper._track, stepper.network.encode_images(random_pixels(2)), random_readout(2, 3)
    )


@pytest.mark.parametrize("has_past", [False, True])
def test_a_prompted_step_is_one_graph(stepper: Stepper, has_past: bool) -> None:
    batch = PromptBatch(torch.rand(2, 3, 2) * 60, torch.ones(2, 3, dtype=torch.int64))
    image = stepper.network.encode_images(random_pixels(2))
    in_one_graph(stepper._take_clicks, image, random_readout(2, 3) if has_past else None, batch)


def test_a_given_mask_is_one_graph(stepper: Stepper) -> None:
    image = stepper.network.encode_images(random_pixels(2))
    in_one_graph(stepper._take_masks, image, torch.rand(2, 64, 64) > 0.5)


def test_encoding_frames_is_one_graph(stepper: Stepper) -> None:
    in_one_graph(stepper.network.encode_images, random_pixels(3))


def test_making_run_lengths_is_one_graph() -> None:
    def work(logits: Tensor) -> tuple[Tensor, ...]:
        full = upsample_logits(logits, (90, 120)) > 0
        runs = encode_runs(full)
        boxes = mask_boxes_xyxy(full)
        return runs.counts, runs.num_runs, mask_areas(full), boxes, stability_scores(logits)

    in_one_graph(work, torch.randn(3, 16, 16))
