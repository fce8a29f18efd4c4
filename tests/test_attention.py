"""Every attention kernel is the softmax it stands for, at any length, and so is their choice."""

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sam2model import attention
from sam2model.attention import KERNELS, KEY_BLOCK, attend, force_kernel, join

EXACT = 1e-5
SOME_QUERIES = 512  # more than one thread's part, in the tests on two threads


@pytest.fixture(autouse=True)
def undisturbed_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without a choice, and leaves the choice of the others alone."""
    monkeypatch.setattr(attention, "_chosen", {})
    yield
    force_kernel(None)


def problem(
    queries: int, keys: int, width: int = 32, values: int = 16, count: int = 2, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    shapes = ((count, queries, width), (count, keys, width), (count, keys, values))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q * spread * width**-0.5, k, v


def softmax_in_double(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, rounded once at the end."""
    scores = q.double() @ k.double().transpose(1, 2)
    return (scores.softmax(dim=-1) @ v.double()).float(), scores.exp().sum(-1).log().float()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (1, 1),
        (7, 3),
        (SOME_QUERIES, KEY_BLOCK),
        (SOME_QUERIES + 1, KEY_BLOCK + 1),
        (SOME_QUERIES - 1, 2 * KEY_BLOCK - 1),
        (2 * SOME_QUERIES + 3, 2 * KEY_BLOCK + 17),
    ],
)
def test_a_kernel_equals_the_softmax_at_lengths_that_no_block_divides(
    kernel: str, queries: int, keys: int
) -> None:
    q, k, v = problem(queries, keys)

    out, lse = KERNELS[kernel](q, k, v)

    wanted, wanted_lse = softmax_in_double(q, k, v)
    assert out.shape == wanted.shape and lse.shape == wanted_lse.shape
    assert float((out - wanted).abs().max()) < EXACT
    assert float((lse - wanted_lse).abs().max()) < EXACT
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("width", "values"), [(256, 64), (32, 32), (8, 64), (64, 8)])
def test_values_may_be_narrower_or_wider_than_keys(kernel: str, width: int, values: int) -> None:
    q, k, v = problem(9, 33, width, values)

    out, lse = KERNELS[kernel](q, k, v)

    wanted, wanted_lse = softmax_in_double(q, k, v)
    assert out.shape == wanted.shape
    assert float((out - wanted).abs().max()) < EXACT
    assert float((lse - wanted_lse).abs().max()) < EXACT


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("largest", [slice(0, 3), slice(-3, None)], ids=["first", "last"])
def test_scores_far_from_zero_neither_overflow_nor_vanish(kernel: str, largest: slice) -> None:
    q, k, v = problem(5, 2 * KEY_BLOCK + 5, spread=20)
    k[:, largest] *= 30
    scores = q.double() @ k.double().transpose(1, 2)
    assert float(scores.max()) > 200  # beyond the exponential in fp32

    out, lse = KERNELS[kernel](q, k, v)

    wanted = scores.softmax(dim=-1) @ v.double()
    assert float((out - wanted).abs().max()) < 1e-3  # scores of 1,000 are known to 1e-4 in fp32
    assert float((lse - scores.logsumexp(-1)).abs().max()) < 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_leaves_its_inputs_as_they_were(kernel: str) -> None:
    inputs = problem(SOME_QUERIES + 5, KEY_BLOCK + 5)
    before = [t.clone() for t in inputs]

    KERNELS[kernel](*inputs)

    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_takes_bf16_and_sums_in_fp32(kernel: str) -> None:
    q, k, v = (t.bfloat16() for t in problem(64, 3000))

    out, lse = KERNELS[kernel](q, k, v)

    wanted, wanted_lse = softmax_in_double(q, k, v)
    scale = float(wanted.abs().max())
    assert float((out.float() - wanted).abs().max()) < 0.01 * scale  # one rounding of bf16 is 0.004
    assert float((lse.float() - wanted_lse).abs().max()) < 5e-3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("split", [1, 40, 99])
def test_two_sets_of_keys_joined_equal_attention_over_both(kernel: str, split: int) -> None:
    q, k, v = problem(17, 100)
    run = KERNELS[kernel]

    joined = join(run(q, k[:, :split], v[:, :split]), run(q, k[:, split:], v[:, split:]))

    assert float((joined - softmax_in_double(q, k, v)[0]).abs().max()) < EXACT


def test_a_set_without_keys_has_no_weight_in_a_join() -> None:
    q, k, v = problem(17, 100)
    something = KERNELS["plain"](q, k, v)
    nothing = torch.zeros_like(something[0]), torch.full_like(something[1], -torch.inf)

    assert torch.equal(join(something, nothing), something[0])
    assert torch.equal(join(nothing, something), something[0])


def test_of_several_candidates_the_fastest_is_measured_once_for_each_kind_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = {KERNELS["sdpa"]: 2.0, KERNELS["blocked"]: 1.0}
    monkeypatch.setattr(attention, "CANDIDATES", {"cpu": ("sdpa", "blocked")})
    monkeypatch.setattr(attention, "_time", lambda kernel, *_: seconds[kernel])
    q, k, v = problem(9, 9)

    with caplog.at_level(logging.INFO, logger="sam2model.attention"):
        attend(q, k, v)
        seconds[KERNELS["sdpa"]] = 0.5
        attend(q, k, v)
        attend(q, k, v[..., :8])

    assert list(attention._chosen.values()) == [KERNELS["blocked"], KERNELS["sdpa"]]
    assert len(caplog.messages) == 2
    assert "cpu torch.float32, values 16 wide: blocked" in caplog.messages[0]
    assert "sdpa 2000.0 ms, blocked 1000.0 ms" in caplog.messages[0]


def test_a_processors_kernel_is_fixed_and_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(attention, "_time", measured)
    q, k, v = problem(9, 9)

    with caplog.at_level(logging.INFO, logger="sam2model.attention"):
        attend(q, k, v)
        attend(q.bfloat16(), k.bfloat16(), v.bfloat16())

    assert set(attention._chosen.values()) == {KERNELS["blocked"]}
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_scores_are_scaled_before_the_softmax(kernel: str, scale: float) -> None:
    q, k, v = problem(9, 33)

    out, lse = KERNELS[kernel](q, k, v, scale)

    wanted, wanted_lse = softmax_in_double(q * scale, k, v)
    assert float((out - wanted).abs().max()) < EXACT
    assert float((lse - wanted_lse).abs().max()) < EXACT


@pytest.fixture
def two_threads() -> Iterator[None]:
    """The tests' small tensors are computed by one thread, as a rule."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("inference", [False, True])
def test_parts_on_several_threads_make_the_same_output_to_the_bit(inference: bool) -> None:
    with torch.inference_mode(inference):
        q, k, v = problem(2 * SOME_QUERIES + 3, KEY_BLOCK + 17, count=3)
        together = KERNELS["blocked"](q, k, v)
        torch.set_num_threads(1)
        alone = KERNELS["blocked"](q, k, v)

    assert float((together[0] - alone[0]).abs().max()) < EXACT
    assert float((together[0] - softmax_in_double(q, k, v)[0]).abs().max()) < EXACT


@pytest.mark.parametrize("spread", [1, 4, 12])
def test_scores_in_bf16_lose_no_more_than_rounding_the_inputs_lost(spread: float) -> None:
    inputs = problem(64, 3000, spread=spread)
    halved = [t.bfloat16() for t in inputs]
    exact, exact_lse = softmax_in_double(*inputs)
    wanted, wanted_lse = softmax_in_double(*(t.float() for t in halved))

    out, lse = KERNELS["blocked"](*halved)

    assert float((out - wanted).std()) < float((wanted - exact).std())
    assert float((lse - wanted_lse).std()) < float((wanted_lse - exact_lse).std())


@pytest.mark.parametrize("name", KERNELS)
def test_a_forced_kernel_is_used_and_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def measured(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(attention, "_time", measured)
    calls = []
    kernel = KERNELS[name]
    monkeypatch.setitem(KERNELS, name, lambda *args: calls.append(1) or kernel(*args))
    q, k, v = problem(9, 9)

    force_kernel(name)
    attend(q, k, v)

    assert calls == [1]


def test_a_kernel_that_does_not_exist_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'flash9'.*blocked.*plain.*sdpa"):
        force_kernel("flash9")


def test_choosing_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    attend(*problem(9, 9))

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1, 2)], ids=["q", "k", "v", "all"])
def test_gradients_flow_through_attention_and_equal_those_of_the_softmax(
    wanted: tuple[int, ...],
) -> None:
    weights = torch.randn(2, 6, 16)

    def gradients(attention_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        inputs = list(problem(6, 11))
        for i in wanted:
            inputs[i].requires_grad_()
        attention_of(*inputs).backward()
        return [inputs[i].grad for i in wanted if inputs[i].grad is not None]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = attend(q, k, v)
        return (out * weights).sum() + lse.sum()

    def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(1, 2)
        return (scores.softmax(-1) @ v * weights).sum() + scores.logsumexp(-1).sum()

    got, expected = gradients(ours), gradients(softmax)
    assert len(got) == len(wanted)
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).abs().max()) < EXACT
