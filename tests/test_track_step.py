"""One step for many objects equals the same step for each alone, and never waits for the device."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_network import (
    GRID,
    MEMORY,
    PLACES,
    SIZE,
    WIDTH,
    largest_difference,
    random_pixels,
    random_readout,
    readout_rows,
    small_network,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sam2model.attention import KERNELS, force_kernel
from sam2model.memory_bank import Readout
from sam2model.position_encoding import sine_encoding
from sam2model.semantics import LABELLING
from sam2model.stepper import Ask, ModelPrompt, Stepper
from sam2model.track_step import (
    ABSENT_LOGIT,
    ImageFeatures,
    PromptBatch,
    Sam2Network,
    StepOutput,
    concatenate,
)

EXACT = 1e-5  # of the largest value: fp32 in another order


@pytest.fixture(autouse=True)
def one_kernel() -> Iterator[None]:
    force_kernel("blocked")
    yield
    force_kernel(None)


@pytest.fixture(scope="module")
def network() -> Sam2Network:
    built: Sam2Network = small_network()
    return built


def clicks(count: int, points: int = 2, seed: int = 0) -> PromptBatch:
    generator = torch.Generator().manual_seed(seed)
    where = SIZE * torch.rand((count, points, 2), generator=generator)
    return PromptBatch(where, torch.randint(0, 2, (count, points), generator=generator))


def frame_of(image: ImageFeatures, row: int) -> ImageFeatures:
    return image.rows(slice(row, row + 1))


# Batches of objects, frames and videos.


def test_tracked_objects_of_several_videos_equal_each_tracked_alone(network: Sam2Network) -> None:
    frames = [2, 0, 0, 1, 2]  # a frame of a video for each object
    image, memory = network.encode_images(random_pixels(3)), random_readout(5, 4, [3, 0, 15, 1, 7])

    together = network.track_step(image.rows(torch.tensor(frames)), memory)

    alone = [
        network.track_step(frame_of(image, frame), readout_rows(memory, [row]))
        for row, frame in enumerate(frames)
    ]
    assert largest_difference(together, concatenate(alone)) < EXACT


def test_objects_of_one_frame_share_its_features(network: Sam2Network) -> None:
    image, memory = network.encode_images(random_pixels(1)), random_readout(4, 3)

    shared = network.track_step(image, memory)

    repeated = network.track_step(image.rows(torch.zeros(4, dtype=torch.int64)), memory)
    assert largest_difference(shared, repeated) < EXACT


@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize("corrected", [False, True])
def test_prompted_objects_equal_each_prompted_alone(
    network: Sam2Network, points: int, corrected: bool
) -> None:
    image = network.encode_images(random_pixels(3))
    memory = random_readout(3, 2, [4, 0, 1]) if corrected else None
    previous = 5 * torch.randn(3, 4 * GRID, 4 * GRID) if corrected else None
    prompt = replace(clicks(3, points), previous_logits=previous)

    together = network.prompt_step(image, memory, prompt)

    alone = [
        network.prompt_step(
            frame_of(image, row),
            None if memory is None else readout_rows(memory, [row]),
            PromptBatch(
                prompt.points[[row]],
                prompt.labels[[row]],
                None if previous is None else previous[[row]],
            ),
        )
        for row in range(3)
    ]
    assert largest_difference(together, concatenate(alone)) < EXACT


@pytest.mark.parametrize("best_of_three", [False, True])
def test_given_masks_equal_each_given_alone(network: Sam2Network, best_of_three: bool) -> None:
    image = network.encode_images(random_pixels(3))
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    masks[0, 5:30, 10:50] = True
    masks[2, 40:, :9] = True

    together = network.mask_step(image, masks, best_of_three)

    alone = [
        network.mask_step(frame_of(image, row), masks[[row]], best_of_three) for row in range(3)
    ]
    assert largest_difference(together, concatenate(alone)) < EXACT
    assert together.object_score.tolist() == [10, -10, 10]  # the second is empty: not in the frame
    assert torch.equal(together.pointer[1], network.no_object_pointer[0])


def test_memories_encoded_together_equal_memories_encoded_one_by_one(
    network: Sam2Network,
) -> None:
    image = network.encode_images(random_pixels(3))
    logits = 4 * torch.randn(3, 4 * GRID, 4 * GRID)
    score, prompted = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, True, False])

    together = network.encode_memory(image, logits, score, prompted)

    for row in range(3):
        alone = network.encode_memory(
            frame_of(image, row), logits[[row]], score[[row]], prompted[[row]]
        )
        # bf16 keeps 8 bits: a last bit of fp32 may turn its rounding.
        assert torch.allclose(together[[row]].float(), alone.float(), rtol=2**-7, atol=1e-5)


def test_the_kernels_of_attention_give_the_same_step(network: Sam2Network) -> None:
    image, memory = network.encode_images(random_pixels(1)), random_readout(2, 7, [15, 0])

    outputs = []
    for name in KERNELS:
        force_kernel(name)
        outputs.append(network.track_step(image, memory))

    assert all(largest_difference(o, outputs[0]) < EXACT for o in outputs)


# What the step makes of memories.


def test_a_memory_is_told_where_and_when_it_was(network: Sam2Network) -> None:
    image = network.encode_images(random_pixels(1))
    memory = random_readout(1, 3)
    result = network.track_step(image, memory)

    later = network.track_step(image, replace(memory, time_rows=memory.time_rows.roll(1)))
    further = network.track_step(
        image, replace(memory, pointer_offsets=memory.pointer_offsets.roll(1))
    )
    permuted = network.track_step(
        image,
        replace(
            memory,
            masks=memory.masks.roll(1, dims=1),
            time_rows=memory.time_rows.roll(1, dims=1),
            pointers=memory.pointers.roll(1, dims=1),
            pointer_offsets=memory.pointer_offsets.roll(1, dims=1),
        ),
    )

    assert largest_difference(later, result) > 100 * EXACT
    assert largest_difference(further, result) > 10 * EXACT
    assert largest_difference(permuted, result) < EXACT


def test_places_and_times_are_the_sine_encoding_plus_the_row_of_the_table(
    network: Sam2Network,
) -> None:
    place = network.derived().memory_place

    sine = sine_encoding(GRID, GRID, MEMORY, torch.device("cpu"))
    for row in range(7):
        when = network.memory_temporal_positional_encoding[row, 0, 0]
        assert torch.equal(place[row], sine + when)


def test_without_times_for_pointers_their_distance_does_not_matter() -> None:
    network: Sam2Network = small_network(enable_temporal_pos_encoding_for_object_pointers=False)
    image, memory = network.encode_images(random_pixels(1)), random_readout(1, 2)

    moved = replace(memory, pointer_offsets=memory.pointer_offsets + 0.3)

    result = network.track_step(image, memory)
    assert largest_difference(network.track_step(image, moved), result) == 0


# Objects that are not in the frame.


def test_an_object_with_a_score_of_0_or_less_is_absent() -> None:
    network: Sam2Network = small_network()
    head = network.mask_decoder.pred_obj_score_head.proj_out
    image, memory = network.encode_images(random_pixels(1)), random_readout(6, 2)
    head.weight.mul_(20)
    head.bias.sub_(network.track_step(image, memory).object_score.median())

    output = network.track_step(image, memory)

    absent = output.object_score <= 0
    assert absent.any() and not absent.all()
    for row, is_absent in enumerate(absent.tolist()):
        assert bool((output.logits[row] == ABSENT_LOGIT).all()) == is_absent
        assert torch.equal(output.pointer[row], network.no_object_pointer[0]) == is_absent


@pytest.mark.parametrize("enabled", [True, False])
def test_the_memory_of_an_absent_object_carries_the_occlusion_embedding(enabled: bool) -> None:
    network: Sam2Network = small_network(enable_occlusion_spatial_embedding=enabled)
    image = network.encode_images(random_pixels(1))
    logits, tracked = torch.randn(1, 16, 16), torch.tensor([False])

    seen, gone = (
        network.encode_memory(image, logits, torch.tensor([score]), tracked) for score in (0.1, 0.0)
    )

    added = gone.float() - seen.float()
    wanted = network.occlusion_spatial_embedding_parameter
    if wanted is None:
        assert not added.any()
    else:
        assert float((added - wanted).abs().max()) < 2**-7 * float(gone.abs().max())


# What is remembered of a frame.


def published_memory(
    network: Sam2Network, coarse: Tensor, logits: Tensor, prompted: bool
) -> Tensor:
    """(L, C_mem) of one object, features projected anew and everything as images."""
    encoder = network.memory_encoder
    mask = F.interpolate(logits[None, None], (SIZE, SIZE), mode="bilinear")
    mask = (mask > 0).float() if prompted else mask.sigmoid()
    x = mask * network.config.sigmoid_scale_for_mem_enc + network.config.sigmoid_bias_for_mem_enc
    for layer in encoder.mask_downsampler.layers:
        x = F.gelu(layer.layer_norm(layer.conv(x)))
    x = encoder.mask_downsampler.final_conv(x)
    x = x + encoder.feature_projection(coarse.T.reshape(1, WIDTH, GRID, GRID))
    for block in encoder.memory_fuser.layers:
        y = block.layer_norm(block.depthwise_conv(x).permute(0, 2, 3, 1))
        y = block.scale * block.pointwise_conv2(F.gelu(block.pointwise_conv1(y)))
        x = x + y.permute(0, 3, 1, 2)
    return encoder.projection(x).flatten(2)[0].T


@pytest.mark.parametrize("prompted", [True, False])
def test_features_projected_once_a_frame_give_the_published_memory(
    network: Sam2Network, prompted: bool
) -> None:
    image = network.encode_images(random_pixels(1))
    logits = 4 * torch.randn(3, 4 * GRID, 4 * GRID)

    got = network.encode_memory(
        image, logits, torch.ones(3), torch.full((3,), prompted, dtype=torch.bool)
    )

    assert got.dtype == torch.bfloat16  # also in fp32, as in both reference models
    for row in range(3):
        wanted = published_memory(network, image.coarse[0], logits[row], prompted)
        assert torch.allclose(got[row].float(), wanted, rtol=2**-7, atol=1e-4)


def test_the_features_of_a_frame_are_projected_for_memory_once_however_many_objects() -> None:
    network: Sam2Network = small_network()
    calls = []
    projecting = network.memory_encoder.project_features
    network.memory_encoder.project_features = lambda coarse: calls.append(1) or projecting(coarse)

    image = network.encode_images(random_pixels(2))
    for _ in range(3):
        network.encode_memory(
            image.rows(torch.tensor([0, 0, 1])),
            torch.randn(3, 16, 16),
            torch.ones(3),
            ~torch.ones(3).bool(),
        )

    assert calls == [1]


def test_a_prompted_frame_is_remembered_hard_and_a_tracked_one_soft(network: Sam2Network) -> None:
    image = network.encode_images(random_pixels(1))
    logits, scores = torch.full((2, SIZE, SIZE), 0.3), torch.ones(2)

    mixed = network.encode_memory(image, logits, scores, torch.tensor([True, False]))

    hard = network.encode_memory(image, 50 * logits, scores, torch.tensor([False, False]))
    assert torch.equal(mixed[0], hard[0]) and not torch.equal(mixed[1], hard[1])


# Nothing waits for the device.


class Watch(TorchDispatchMode):
    """Notes every operator whose result the host must wait for."""

    WAITS = {
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "equal",
        "unique2",
        "is_nonzero",
    }

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.waits = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name = func.name().split("::")[1].split(".")[0]
        if name in self.WAITS or (name.startswith("index") and _picks_by_mask(args)):
            self.waits.append(name)
        return func(*args, **kwargs or {})


def _picks_by_mask(args: Any) -> bool:
    """Whether an indexing operator selects by a bool tensor, so that its shape hangs on values."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)


def every_step(network: Sam2Network, device: str = "cpu") -> list[Callable[[], object]]:
    """The calls of one frame, in order, on tensors of a device."""
    image = network.encode_images(random_pixels(2).to(device)).rows(slice(0, 1))
    memory = Readout(*(getattr(random_readout(3, 4), n).to(device) for n in Readout.__slots__))
    prompt = PromptBatch(*(getattr(clicks(3), n).to(device) for n in ("points", "labels")))
    previous = torch.randn(3, 4 * GRID, 4 * GRID, device=device)
    masks = torch.ones(3, SIZE, SIZE, device=device, dtype=torch.bool)
    scores, prompted = torch.ones(3, device=device), torch.ones(3, device=device).bool()
    return [
        lambda: network.encode_images(random_pixels(2).to(device)),
        lambda: network.track_step(image, memory),
        lambda: network.prompt_step(image, None, prompt),
        lambda: network.prompt_step(image, memory, replace(prompt, previous_logits=previous)),
        lambda: network.mask_step(image, masks, True),
        lambda: network.encode_memory(image, previous, scores, prompted),
    ]


@pytest.mark.parametrize("kernel", sorted({*KERNELS} - {"blocked"}))  # which is for processors
def test_no_operator_of_a_step_waits_for_the_device(network: Sam2Network, kernel: str) -> None:
    force_kernel(kernel)
    for step in every_step(network):
        with Watch() as watch:
            step()
        assert watch.calls > 20
        assert watch.waits == []


def test_the_watch_would_see_a_wait() -> None:
    values = torch.tensor([1.0, -1.0])
    waiting: list[Callable[[], object]] = [
        lambda: values.sum().item(),
        lambda: bool(values.any()),
        lambda: values[values > 0],
        lambda: values.nonzero(),
    ]
    for wait in waiting:
        with Watch() as watch:
            wait()
        assert watch.waits
    unseen: list[Callable[[Tensor], object]] = [Tensor.tolist, Tensor.cpu, Tensor.item]
    for read in unseen:  # which is why the next test runs a step without values
        with pytest.raises((NotImplementedError, RuntimeError)):
            read(values.to("meta"))


def test_a_step_needs_no_values_to_know_its_shapes() -> None:
    # On this device there are no values: reading one, or copying one to the host, raises.
    force_kernel(None)  # a processor's kernel may read one
    network: Sam2Network = small_network().to("meta")

    outputs = [step() for step in every_step(network, "meta")]

    assert isinstance(outputs[1], StepOutput)
    assert outputs[1].logits.shape == (3, 4 * GRID, 4 * GRID)
    assert outputs[1].pointer.shape == (3, WIDTH)
    assert isinstance(outputs[5], Tensor) and outputs[5].shape == (3, PLACES, MEMORY)


class BlockingCopies(TorchFunctionMode):
    """Notes tensors that are made on a device from values on the host, which waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self.made.append(str(args[0]))
        return func(*args, **kwargs)


def test_objects_of_several_frames_are_stepped_and_remembered_without_waiting() -> None:
    # As in the test before: whatever reads a value on this device raises.
    force_kernel(None)
    network: Sam2Network = small_network().to("meta")
    stepper = Stepper(network, LABELLING, keep_all=False, slots=2)
    image = network.encode_images(random_pixels(2).to("meta"))
    click = ModelPrompt(torch.zeros(1, 2), torch.ones(1, dtype=torch.int64))
    for key in range(3):
        stepper.bank.add_object(key)
    with BlockingCopies() as copies:
        asks = [Ask(key, key % 2, 0, prompt=click.to(network.device)) for key in range(3)]
        stepper.prompt(image, asks)
        for frame in (1, 2):
            output = stepper.track(image, [Ask(key, key % 2, frame) for key in range(3)])

    assert output.logits.shape == (3, 4 * GRID, 4 * GRID)
    assert copies.made == []


def test_a_step_does_not_change_what_it_is_given(network: Sam2Network) -> None:
    image, memory = network.encode_images(random_pixels(2)), random_readout(2, 3)
    kept = [t.clone() for t in _tensors(image, memory)]

    output = network.track_step(image, memory)
    network.encode_memory(image, output.logits, output.object_score, torch.ones(2).bool())

    assert all(torch.equal(a, b) for a, b in zip(_tensors(image, memory), kept, strict=True))


def _tensors(*parts: Any) -> list[Tensor]:
    return [getattr(part, name) for part in parts for name in type(part).__slots__]


def test_clicks_and_places_of_new_weights_are_told_in_one_language() -> None:
    built = Sam2Network(small_network().config)
    click = built.prompt_encoder.shared_embedding.positional_embedding
    place = built.shared_image_embedding.positional_embedding
    assert torch.equal(click, place)
    assert click.data_ptr() != place.data_ptr()  # two tensors, as checkpoints have them
