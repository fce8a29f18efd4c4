"""What only a GPU can show of the engine. `python -m pytest -m gpu` runs all of these."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_network import random_pixels, small_network
from test_engine import LABELLINGS, PROCESSOR, SEED, FakeVideo, WatchedEngine, click, label
from test_repropagation import told

from sam2model.engine import EngineOptions
from sam2model.graphs import Directly, GraphRunner, record_on_cuda
from sam2model.refinement_memory import MemoryBudget, VideoMemory
from sam2model.rle import decode, iou
from sam2model.semantics import LABELLING
from sam2model.stepper import Ask, ModelPrompt, Stepper
from sam2model.track_step import Sam2Network
from sam2model.tracked_masks import FrameMasks, PendingMasks

pytestmark = pytest.mark.gpu

Labels = dict[str, list[FrameMasks]]


@pytest.fixture(scope="module", autouse=True)
def needs_a_gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = tf32


def network_on(device: str, dtype: torch.dtype = torch.float32) -> Sam2Network:
    built: Sam2Network = small_network(SEED).to(device=device, dtype=dtype)
    return built


def labels(network: Sam2Network, runner: Any = None, **options: Any) -> Labels:
    engine = WatchedEngine(network, PROCESSOR, LABELLING, EngineOptions(**options), runner=runner)
    found = {
        name: list(label(engine, FakeVideo(18, name), prompts))
        for name, prompts in LABELLINGS.items()
    }
    engine.close()
    return found


def differing_px(a: Labels, b: Labels) -> int:
    """The most pixels in which two masks of the same object on the same frame differ."""
    most = 0
    for name in b:
        got, wanted = told(a[name]), told(b[name])
        assert got.keys() == wanted.keys()
        for place, mask in wanted.items():
            frame = b[name][0]
            pixels = [decode(m.counts, frame.height, frame.width) for m in (got[place], mask)]
            most = max(most, int((pixels[0] ^ pixels[1]).sum()))
    return most


def test_masks_on_a_gpu_are_those_of_a_processor() -> None:
    on_gpu = labels(network_on("cuda"), Directly())

    assert differing_px(on_gpu, labels(network_on("cpu"))) <= 12


def test_replayed_steps_give_the_same_masks_as_steps_by_themselves() -> None:
    runner = GraphRunner(record_on_cuda(), after=1)
    replayed = labels(network_on("cuda"), runner)

    assert runner.keys
    assert differing_px(replayed, labels(network_on("cuda"), Directly())) <= 12


def test_the_default_engine_of_a_gpu_replays_steps() -> None:
    engine = WatchedEngine(network_on("cuda"), PROCESSOR, LABELLING)
    masks = list(label(engine, FakeVideo(60), [click(1, 0)]))
    runner = engine.stepper._runner
    engine.close()

    assert len(masks) == 60
    assert isinstance(runner, GraphRunner) and runner.keys


def test_masks_in_bf16_mostly_cover_those_in_fp32() -> None:
    name = "click and box that begin apart"
    in_fp32 = told(labels(network_on("cuda"))[name])
    in_bf16 = told(labels(network_on("cuda", torch.bfloat16))[name])

    # Random weights make outlines as rough as can be, and errors add up over frames.
    begun = [iou(in_bf16[place].counts, in_fp32[place].counts) for place in [(1, 0), (2, 5)]]
    assert min(begun) > 0.8


def test_a_compiled_encoder_gives_the_same_masks() -> None:
    compiled = labels(network_on("cuda"), Directly(), compile_encoder=True)

    assert differing_px(compiled, labels(network_on("cuda"), Directly())) <= 12


@pytest.mark.parametrize("graphs", [False, True])
def test_no_frame_makes_the_engine_wait_for_the_device(graphs: bool) -> None:
    runner = GraphRunner(record_on_cuda(), after=1) if graphs else Directly()
    network = network_on("cuda", torch.bfloat16)
    stepper = Stepper(network, LABELLING, keep_all=False, runner=runner)
    prompt = ModelPrompt(torch.full((1, 2), 20.0), torch.ones(1, dtype=torch.int64))
    prompt = prompt.to(torch.device("cuda"))
    pixels = random_pixels(3).cuda()

    def frame(index: int, stepper: Stepper) -> PendingMasks:
        image = network.encode_images(pixels)
        asks = [Ask(key, key, index, prompt=prompt if index == 0 else None) for key in range(3)]
        output = (stepper.prompt if index == 0 else stepper.track)(image, asks)
        return PendingMasks(output, [0, 1, 2], [False] * 3, 300, 400)

    with torch.inference_mode():
        for key in range(3):
            stepper.bank.add_object(key)
        for index in range(20):  # kernels are chosen, constants folded, graphs recorded
            frame(index, stepper).finish()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            pending = [frame(index, stepper) for index in range(20, 30)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        masks = [masks for p in pending for masks in p.finish()]

    assert len(masks) == 30
    assert isinstance(runner, Directly) or runner.keys


def test_a_mask_of_more_runs_than_were_made_room_for_is_made_again() -> None:
    network = network_on("cuda")
    with torch.inference_mode():
        image = network.encode_images(random_pixels(1).cuda())
        masks = torch.zeros((1, 64, 64), dtype=torch.bool, device="cuda")
        output = network.mask_step(image, masks, best_of_three=False)
        stripes = torch.full((1, 16, 16), -1.0, device="cuda")
        stripes[:, ::2] = 1.0
        output.logits.copy_(stripes)
        found = PendingMasks(output, [1], [True], 16, 16 * 1024).finish()
        on_host = PendingMasks(
            type(output)(*(getattr(output, n).cpu() for n in type(output).__slots__)),
            *([1], [True], 16, 16 * 1024),
        ).finish()

    assert found == on_host
    assert (decode(found[0].counts, 16, 16 * 1024).sum(0) > 0).all()


def test_features_move_from_the_device_to_the_host_and_back_without_a_change() -> None:
    network = network_on("cuda")
    engine = WatchedEngine(network, PROCESSOR, LABELLING, EngineOptions(slots=1, frame_batch=1))
    memory = VideoMemory(MemoryBudget(device_feature_bytes=100_000, snapshot_every=4))
    old, new = [click(1, 0)], [click(1, 0), click(1, 14)]
    video: Any = FakeVideo(22)
    list(engine.refine(video, old, memory))
    wanted = told(list(engine.refine(video, new, None)))
    decoded = video.given

    found = told(list(engine.refine(video, new, memory, before=old)))
    engine.close()

    assert video.given == decoded, "every frame was known"
    assert found == {place: mask for place, mask in wanted.items() if place[1] >= 14}


def test_an_engine_outlives_a_step_that_has_no_room() -> None:
    network = network_on("cuda")
    engine = WatchedEngine(network, PROCESSOR, LABELLING)
    held: list[torch.Tensor] = []
    frames = label(engine, FakeVideo(200), [click(o, 0) for o in range(8)])
    for _ in range(3):
        next(frames)
    bank = engine.stepper.bank
    # Whatever a step takes beyond what the allocator holds already is refused.
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(1 << 20, device="cuda"))
        with pytest.raises(torch.OutOfMemoryError):
            list(label(engine, FakeVideo(30), [click(o, 0) for o in range(64)]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        held.clear()
        frames.close()

    after = list(label(engine, FakeVideo(12), [click(1, 0)]))
    engine.close()
    assert len(after) == 12
    assert bank.mask_pages_in_use == 0


def test_rle_of_a_device_is_that_of_a_processor() -> None:
    network = network_on("cuda")
    with torch.inference_mode():
        image = network.encode_images(random_pixels(1).cuda())
        masks = torch.zeros((4, 64, 64), dtype=torch.bool, device="cuda")
        output = network.mask_step(image, masks, best_of_three=False)
        output.logits.copy_(torch.randn(output.logits.shape, device="cuda"))
        there = PendingMasks(output, range(4), [False] * 4, 120, 90).finish()
        here = PendingMasks(
            type(output)(*(getattr(output, n).cpu() for n in type(output).__slots__)),
            *(range(4), [False] * 4, 120, 90),
        ).finish()

    for a, b in zip(there, here, strict=True):
        pixels = [decode(m.counts, 120, 90) for m in (a, b)]
        assert np.logical_xor(*pixels).sum() <= 2  # where an interpolated logit is zero
