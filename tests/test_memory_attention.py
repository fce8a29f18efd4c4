"""Each rewrite of memory attention equals the published layers, written out here one by one.

The published order: self-attention with rotary positions; attention to all remembered places and
pointers in one softmax, values projected before it; perceptron.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_network import GRID, MEMORY, PLACES, WIDTH, small_network
from torch import Tensor, nn

from sam2model.memory_attention import MemoryAttention, MemoryKeys, RopeAttention
from sam2model.position_encoding import pairs_in_halves
from sam2model.track_step import Sam2Network

EXACT = 1e-5  # of the largest value: fp32 in another order
HEADS = pytest.mark.parametrize("heads", [1, 2, 4])


def attention_of(heads: int = 1) -> MemoryAttention:
    network: Sam2Network = small_network(memory_attention_num_attention_heads=heads)
    return network.memory_attention


def random_keys(
    count: int = 3, frames: int = 4, valid: list[int] | None = None, seed: int = 1
) -> MemoryKeys:
    """Memories of `count` objects; the first `valid[n]` of 6 pointer tokens of object n count."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.tensor(valid or [6] * count)
    pointers = torch.randn((count, 6, MEMORY), generator=generator)
    spatial = torch.randn((count, frames, PLACES, MEMORY), generator=generator)
    return MemoryKeys(
        spatial=spatial,
        spatial_keys=spatial + torch.randn(spatial.shape, generator=generator),
        pointers=pointers,
        pointer_keys=pointers + torch.randn(pointers.shape, generator=generator),
        pointer_valid=torch.arange(6) < held[:, None],
    )


def of_objects(memory: MemoryKeys, index: list[int]) -> MemoryKeys:
    return MemoryKeys(*(getattr(memory, name)[index] for name in MemoryKeys.__slots__))


def random_tokens(count: int) -> Tensor:
    return torch.randn((count, PLACES, WIDTH), generator=torch.Generator().manual_seed(2))


def difference(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


# The published layers, with nothing shared, folded or joined.


def turned(x: Tensor, theta: float = 10000.0) -> Tensor:
    """Rotary position of (…, L, D), L = GRID², in sines and cosines: x for half of the pairs."""
    quarter = x.shape[-1] // 4
    frequency = torch.tensor([theta ** (-i / quarter) for i in range(quarter)])
    place = torch.arange(x.shape[-2])
    angle = torch.cat(
        ((place % GRID)[:, None] * frequency, (place // GRID)[:, None] * frequency), 1
    )
    even, odd = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * angle.cos() - odd * angle.sin()
    out[..., 1::2] = even * angle.sin() + odd * angle.cos()
    return out


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(L, heads·D) → (heads, L, D)."""
    return x.view(x.shape[0], heads, x.shape[1] // heads).transpose(0, 1)


def softmax_attention(attn: RopeAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One object's attention from projected, turned heads, as in every textbook."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    looked = scores.softmax(dim=-1) @ v
    return attn.o_proj(looked.transpose(0, 1).flatten(1))


def self_attention(attn: RopeAttention, x: Tensor) -> Tensor:
    q, k, v = (heads_of(p(x), attn.heads) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
    return softmax_attention(attn, turned(q), turned(k), v)


def cross_attention(attn: RopeAttention, x: Tensor, memory: MemoryKeys, row: int) -> Tensor:
    """All places of all remembered frames and all valid pointers in one softmax."""
    valid = memory.pointer_valid[row]
    keys = [turned(heads_of(attn.k_proj(frame), attn.heads)) for frame in memory.spatial_keys[row]]
    keys.append(heads_of(attn.k_proj(memory.pointer_keys[row][valid]), attn.heads))
    values = torch.cat((memory.spatial[row].flatten(0, 1), memory.pointers[row][valid]))
    values = heads_of(attn.v_proj(values), attn.heads)
    q = turned(heads_of(attn.q_proj(x), attn.heads))
    return softmax_attention(attn, q, torch.cat(keys, dim=1), values)


def published(model: MemoryAttention, tokens: Tensor, memory: MemoryKeys) -> Tensor:
    """(N, L, C) by the published layers, one object after the other."""
    rows = []
    for row, x in enumerate(tokens):
        for layer in model.layers:
            x = x + self_attention(layer.self_attn, layer.layer_norm1(x))
            x = x + cross_attention(layer.cross_attn_image, layer.layer_norm2(x), memory, row)
            x = x + layer.linear2(F.relu(layer.linear1(layer.layer_norm3(x))))
        rows.append(model.layer_norm(x))
    return torch.stack(rows)


@HEADS
def test_memory_attention_equals_the_published_layers(heads: int) -> None:
    model, memory, tokens = attention_of(heads), random_keys(), random_tokens(3)

    got = model(*model.prologue(tokens), memory)

    assert difference(got, published(model, tokens, memory)) < EXACT


@HEADS
def test_values_projected_after_the_softmax_equal_values_projected_before(heads: int) -> None:
    attn = attention_of(heads).layers[0].cross_attn_image
    weights = torch.randn(heads, 5, 9).softmax(dim=-1)
    remembered = torch.randn(9, MEMORY)

    looked = (weights @ remembered).transpose(0, 1).flatten(1)  # (5, heads·C_mem)
    got = attn.fold_output()(looked)

    before = weights @ heads_of(attn.v_proj(remembered), heads)
    assert difference(got, attn.o_proj(before.transpose(0, 1).flatten(1))) < EXACT


@HEADS
def test_queries_scaled_in_their_weights_equal_scaled_scores(heads: int) -> None:
    attn = attention_of(heads).layers[0].self_attn
    x = torch.randn(5, WIDTH)

    got = attn.fold_query()(x)

    wanted = attn.q_proj(x) / math.sqrt(WIDTH / heads)
    assert difference(got, pairs_in_halves(wanted.T, heads).T) < EXACT


def test_the_first_layer_up_to_its_queries_is_shared_by_all_objects_of_a_frame() -> None:
    model, memory = attention_of(), random_keys(3)
    one_frame = random_tokens(1)

    tokens, queries = model.prologue(one_frame)
    shared = model(tokens.expand(3, -1, -1), queries.expand(3, -1, -1), memory)

    assert tokens.shape[0] == queries.shape[0] == 1
    each = published(model, one_frame.expand(3, -1, -1), memory)
    assert difference(shared, each) < EXACT


@pytest.mark.parametrize("valid", [[6, 6, 6], [6, 1, 0], [0, 0, 0]])
def test_pointers_attended_apart_equal_one_softmax_over_all_keys(valid: list[int]) -> None:
    model, tokens = attention_of(), random_tokens(3)
    memory = random_keys(valid=valid)

    got = model(*model.prologue(tokens), memory)

    assert bool(got.isfinite().all())
    assert difference(got, published(model, tokens, memory)) < EXACT


@pytest.mark.parametrize("rubbish", [1e3, float("nan"), float("inf")])
def test_what_stands_in_the_place_of_an_absent_pointer_is_never_read(rubbish: float) -> None:
    model, tokens = attention_of(), random_tokens(3)
    memory = random_keys(valid=[6, 2, 0])
    absent = ~memory.pointer_valid[..., None]

    other = replace(
        memory,
        pointers=memory.pointers.masked_fill(absent, rubbish),
        pointer_keys=memory.pointer_keys.masked_fill(absent, rubbish),
    )

    got = model(*model.prologue(tokens), other)
    assert difference(got, model(*model.prologue(tokens), memory)) == 0


def test_the_order_of_remembered_frames_and_pointers_changes_nothing() -> None:
    model, tokens, memory = attention_of(), random_tokens(3), random_keys(valid=[6, 3, 1])
    frames, pointers = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 1, 3, 0, 4, 2])
    shuffled = MemoryKeys(
        memory.spatial[:, frames],
        memory.spatial_keys[:, frames],
        memory.pointers[:, pointers],
        memory.pointer_keys[:, pointers],
        memory.pointer_valid[:, pointers],
    )

    got = model(*model.prologue(tokens), shuffled)

    assert difference(got, model(*model.prologue(tokens), memory)) < EXACT


def test_objects_in_a_batch_do_not_see_each_other() -> None:
    model, tokens, memory = attention_of(2), random_tokens(3), random_keys(valid=[6, 2, 0])
    together = model(*model.prologue(tokens), memory)

    for row in range(3):
        alone = model(*model.prologue(tokens[[row]]), of_objects(memory, [row]))
        assert difference(together[[row]], alone) < EXACT


def test_every_part_of_a_memory_moves_the_result() -> None:
    model, tokens, memory = attention_of(), random_tokens(3), random_keys()
    result = model(*model.prologue(tokens), memory)

    for name in MemoryKeys.__slots__:
        part = getattr(memory, name)
        changed = part & False if name == "pointer_valid" else part.roll(1, dims=-1)
        moved = model(*model.prologue(tokens), replace(memory, **{name: changed}))
        assert difference(moved, result) > 100 * EXACT, name


def test_a_model_that_trains_gets_gradients_through_the_folded_weights() -> None:
    model = attention_of().train().requires_grad_(True)
    memory = random_keys(valid=[6, 2, 0])

    model(*model.prologue(random_tokens(3)), memory).square().sum().backward()

    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {n for n in without if n.endswith("k_proj.bias")}  # no softmax feels those


def test_gradients_equal_those_of_the_published_layers() -> None:
    model = attention_of(2).train().requires_grad_(True)
    memory, tokens = random_keys(valid=[6, 2, 0]), random_tokens(3)

    def gradients(out: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        out.square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = gradients(published(model, tokens, memory))
    got = gradients(model(*model.prologue(tokens), memory))

    for name, gradient in wanted.items():
        if not name.endswith("k_proj.bias"):
            assert difference(got[name], gradient) < 10 * EXACT, name


def test_linear_layers_of_the_reference_are_the_modules_own() -> None:
    # The comparisons above mean something only while both sides read the same parameters.
    model = attention_of()
    memory, tokens = random_keys(), random_tokens(3)
    before = published(model, tokens, memory)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(1.1)
    model.eval()  # fold again

    after = model(*model.prologue(tokens), memory)

    assert difference(after, before) > 100 * EXACT
    assert difference(after, published(model, tokens, memory)) < EXACT
