"""What is folded from weights follows them wherever they are loaded, moved or trained."""

import copy
import pickle

import pytest
import torch
from small_network import random_pixels, small_network
from torch import Tensor, nn

from sam2model import track_step
from sam2model.derived import DerivedModule
from sam2model.track_step import Sam2Network


class Doubled(DerivedModule[Tensor]):
    """Folds twice its weight and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.folds = 0

    def derive(self) -> Tensor:
        self.folds += 1
        return 2 * self.weight

    def forward(self) -> Tensor:
        return self.derived()


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Doubled()


def test_in_evaluation_weights_are_folded_once() -> None:
    module = Doubled().eval()

    assert module() is module()
    assert module.folds == 1


def test_in_training_weights_are_folded_on_every_call_with_gradients() -> None:
    module = Doubled().train()

    module().sum().backward()
    module().sum().backward()

    assert module.folds == 2
    assert module.weight.grad is not None and module.weight.grad.tolist() == [4, 4]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_constants_folded_in_any_mode_may_be_read_by_a_graph_with_gradients(mode: type) -> None:
    module = Doubled().eval()
    with mode():
        module()

    x = torch.ones(2, requires_grad=True)
    (x * module()).sum().backward()

    assert x.grad is not None and x.grad.tolist() == [2, 2]
    assert not module().requires_grad


def test_loading_folds_again() -> None:
    holder = Holder().eval()
    holder.part()

    holder.load_state_dict({"part.weight": torch.full((2,), 3.0)})

    assert holder.part().tolist() == [6, 6]


@pytest.mark.parametrize("change", [lambda m: m.to(torch.float64), lambda m: m.to("meta")])
def test_moving_folds_again(change: object) -> None:
    holder = Holder().eval()
    holder.part()

    assert callable(change)
    change(holder)

    assert holder.part().dtype == holder.part.weight.dtype
    assert holder.part().device == holder.part.weight.device


def test_weights_trained_by_an_optimiser_are_folded_again_for_evaluation() -> None:
    holder = Holder().eval()
    holder.part()

    holder.train()
    optimiser = torch.optim.SGD(holder.parameters(), lr=1.0)
    holder.part().sum().backward()
    optimiser.step()
    holder.eval()

    assert holder.part().tolist() == [-2, -2]


def test_weights_changed_by_hand_are_folded_again_after_eval() -> None:
    holder = Holder().eval()
    holder.part()

    with torch.no_grad():
        holder.part.weight.fill_(5)
    holder.eval()

    assert holder.part().tolist() == [10, 10]


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_its_own_constants(twin: object) -> None:
    network: Sam2Network = small_network()
    pixels = random_pixels(1)
    wanted = network.encode_images(pixels)

    assert callable(twin)
    other: Sam2Network = twin(network)
    network.load_state_dict({n: torch.zeros_like(t) for n, t in network.state_dict().items()})

    assert torch.equal(other.encode_images(pixels).tokens, wanted.tokens)
    assert not torch.equal(network.encode_images(pixels).tokens, wanted.tokens)


PARTS = ["vision_encoder", "mask_decoder", "shared_image_embedding", "memory_attention"]


@pytest.mark.parametrize("part", PARTS)
def test_loading_a_part_alone_reaches_the_constants_that_the_whole_folds_from_it(part: str) -> None:
    network: Sam2Network = small_network(0)
    other: Sam2Network = small_network(1)
    _ = _constants(network), network.encode_images(random_pixels(1))

    network.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())

    wanted: Sam2Network = small_network(2)
    wanted.load_state_dict(network.state_dict())
    got = _constants(network)
    assert all(torch.equal(a, b) for a, b in zip(got, _constants(wanted), strict=True))


def _constants(network: Sam2Network) -> list[Tensor]:
    """Everything that is folded in a network."""
    whole, decoder = network.derived(), network.mask_decoder.derived()
    layers = [layer.derived() for layer in network.memory_attention.layers]
    return [
        *(whole.fine.weight, whole.middle.bias, whole.memory_place),
        *decoder.encodings,
        decoder.output_tokens,
        *(layer.cross_output.weight for layer in layers),
        network.vision_encoder.backbone.derived(),
    ]


# The fp32 copy of a bf16 model, for processors that cannot multiply bf16.


@pytest.fixture
def no_bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track_step, "compute_dtype", lambda device, wanted: torch.float32)


@pytest.mark.usefixtures("no_bf16_products")
def test_a_bf16_model_computes_with_the_same_weights_in_fp32_where_bf16_has_no_products() -> None:
    network: Sam2Network = small_network().to(torch.bfloat16)

    copied = network.for_compute()

    assert copied is network.for_compute() and copied is not network
    assert copied.dtype == torch.float32 and not copied.training
    wanted = {n: t.float() for n, t in network.state_dict().items()}
    assert all(torch.equal(t, wanted[n]) for n, t in copied.state_dict().items())
    assert all(p.dtype == torch.bfloat16 for p in network.parameters())  # the copy is no part


@pytest.mark.usefixtures("no_bf16_products")
def test_the_fp32_copy_follows_the_weights() -> None:
    network: Sam2Network = small_network().to(torch.bfloat16)
    before = network.for_compute()

    network.mask_decoder.load_state_dict(small_network(1).mask_decoder.state_dict())

    after = network.for_compute()
    assert after is not before
    name = "mask_decoder.iou_token.weight"
    assert torch.equal(after.get_parameter(name), network.get_parameter(name).float())


@pytest.mark.usefixtures("no_bf16_products")
def test_a_model_that_trains_or_is_in_fp32_computes_itself() -> None:
    network: Sam2Network = small_network()
    assert network.for_compute() is network

    halved = network.to(torch.bfloat16).train()
    assert halved.for_compute() is halved
