"""A frame's features, conditioned on what is remembered of each object.

Knows nothing of which frames are remembered or why; keys may come in any order. Three exact
rewrites of the published layers (identity tests: tests/test_memory_attention.py):
values stay the 64 remembered channels and Wo·Wv is applied after the softmax; the first
layer up to its cross-attention queries depends on the frame alone and runs once a frame;
object pointers are attended apart and joined by log-sum-exp. Between attentions every place is for
itself, and processors take a block of them through all that lies there while it is in the cache.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2model.attention import attend, join
from sam2model.configuration import Sam2VideoConfig
from sam2model.derived import DerivedModule
from sam2model.hiera import ACTIVATIONS
from sam2model.host_threads import in_blocks
from sam2model.position_encoding import pairs_in_halves, rotary_turns, rotate

ROWS = 512  # of a block of places: what lies between two layers of a perceptron fits a core's cache


@dataclass(frozen=True, slots=True)
class MemoryKeys:
    """What N objects attend to. Values are remembered channels; keys add when and where.

    spatial, spatial_keys: (N, M, L, C_mem) of M frames; pointers, pointer_keys: (N, E, C_mem);
    pointer_valid: (N, E) bool; a row may be all false.
    """

    spatial: Tensor
    spatial_keys: Tensor
    pointers: Tensor
    pointer_keys: Tensor
    pointer_valid: Tensor


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer's weight and bias after folding."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """One layer's projections: queries scaled by 1/√D, values folded into the output.

    Queries and keys come with the pairs that turn in the halves of a head's channels.
    """

    self_query: Projection
    self_key: Projection
    cross_query: Projection
    cross_key: Projection
    cross_output: Projection  # (C, heads·C_mem): all of Wo·Wv


class RopeAttention(nn.Module):
    """The parameters of one attention, as the checkpoints name them."""

    def __init__(self, config: Sam2VideoConfig, key_dim: int) -> None:
        super().__init__()
        hidden = config.memory_attention_hidden_size
        inner = hidden // config.memory_attention_downsample_rate
        self.heads = config.memory_attention_num_attention_heads
        self.q_proj = nn.Linear(hidden, inner)
        self.k_proj = nn.Linear(key_dim, inner)
        self.v_proj = nn.Linear(key_dim, inner)
        self.o_proj = nn.Linear(inner, hidden)

    def fold_query(self) -> Projection:
        """Queries, scaled by 1/√D, for `rotate`."""
        scale = (self.q_proj.out_features // self.heads) ** -0.5
        return self._to_be_turned(self.q_proj.weight * scale, self.q_proj.bias * scale)

    def fold_key(self) -> Projection:
        """Keys, for `rotate`."""
        return self._to_be_turned(self.k_proj.weight, self.k_proj.bias)

    def _to_be_turned(self, weight: Tensor, bias: Tensor) -> Projection:
        return Projection(pairs_in_halves(weight, self.heads), pairs_in_halves(bias, self.heads))

    def fold_output(self) -> Projection:
        """Wo·Wv of every head side by side, in fp32: rows of a softmax sum to 1."""
        dtype = self.o_proj.weight.dtype
        outputs = self.o_proj.weight.float().unflatten(1, (self.heads, -1))  # (C, heads, D)
        values = self.v_proj.weight.float().unflatten(0, (self.heads, -1))  # (heads, D, C_mem)
        weight = torch.einsum("chd,hdm->chm", outputs, values).flatten(1)
        bias = self.o_proj.weight.float() @ self.v_proj.bias.float() + self.o_proj.bias.float()
        return Projection(weight.to(dtype), bias.to(dtype))

    def split_heads(self, x: Tensor) -> Tensor:
        """(N, L, heads·D) → (N·heads, L, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def merge_heads(self, x: Tensor) -> Tensor:
        """(N·heads, L, D) → (N, L, heads·D)."""
        return x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def turned(self, x: Tensor, project: Projection, turns: Tensor) -> Tensor:
        """Queries or keys, turned by their places: (N, L, C) → (N·heads, L, D)."""

        def some(objects: slice, rows: slice) -> Tensor:
            projected = project(x[objects, rows]).unflatten(-1, (self.heads, -1))
            return rotate(projected, turns[:, rows, None])

        shape = (*x.shape[:2], self.heads, project.bias.shape[0] // self.heads)
        return in_blocks(some, x, shape, ROWS).transpose(1, 2).flatten(0, 1)

    def part(self, x: Tensor, objects: slice, rows: slice = slice(None)) -> Tensor:
        """Some objects' heads, some rows of each: (N·heads, L, …) → (n·heads, l, …)."""
        return x.unflatten(0, (-1, self.heads))[objects, :, rows].flatten(0, 1)

    def share_heads(self, x: Tensor) -> Tensor:
        """(N, K, D) → (N·heads, K, D), the same for every head."""
        return x if self.heads == 1 else x.repeat_interleave(self.heads, dim=0)


class MemoryAttentionLayer(DerivedModule[FoldedLayer]):
    """Self-attention of a frame, attention to memory, perceptron; each with a residual."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        hidden = config.memory_attention_hidden_size
        inner = config.memory_attention_feed_forward_hidden_size
        self.self_attn = RopeAttention(config, hidden)
        self.cross_attn_image = RopeAttention(config, config.memory_encoder_output_channels)
        self.linear1 = nn.Linear(hidden, inner)
        self.linear2 = nn.Linear(inner, hidden)
        self.layer_norm1 = nn.LayerNorm(hidden)
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.layer_norm3 = nn.LayerNorm(hidden)
        self.activation = ACTIVATIONS[config.memory_attention_feed_forward_hidden_act]

    def derive(self) -> FoldedLayer:
        cross = self.cross_attn_image
        return FoldedLayer(
            self_query=self.self_attn.fold_query(),
            self_key=self.self_attn.fold_key(),
            cross_query=cross.fold_query(),
            cross_key=cross.fold_key(),
            cross_output=cross.fold_output(),
        )

    def before_memory(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention, and the queries to memory: (N, L, C) → (N, L, C), (N, L, C')."""
        folded, attn = self.derived(), self.self_attn
        normed = self.layer_norm1(x)
        q = attn.turned(normed, folded.self_query, turns)
        k = attn.turned(normed, folded.self_key, turns)
        looked, _ = attend(q, k, attn.split_heads(attn.v_proj(normed)))
        x = x + attn.o_proj(attn.merge_heads(looked.to(x.dtype)))
        cross = self.cross_attn_image
        queries = cross.turned(self.layer_norm2(x), folded.cross_query, turns)
        return x, cross.merge_heads(queries)

    def after_queries(
        self, x: Tensor, queries: Tensor, memory: MemoryKeys, turns: Tensor
    ) -> Tensor:
        """Attention to memory and the perceptron: (N, L, C) → (N, L, C)."""
        folded, attn = self.derived(), self.cross_attn_image
        q = attn.split_heads(queries)
        # Each frame's keys are turned by their own place: (N, M, L, C_mem) → (N·heads, M·L, D).
        keys = attn.turned(memory.spatial_keys.flatten(0, 1), folded.cross_key, turns)
        keys = keys.unflatten(0, (*memory.spatial_keys.shape[:2], attn.heads))
        spatial = attend(
            q,
            keys.transpose(1, 2).flatten(2, 3).flatten(0, 1),
            attn.share_heads(memory.spatial.flatten(1, 2)),
        )
        pointers = (
            attn.split_heads(folded.cross_key(memory.pointer_keys)),
            attn.share_heads(memory.pointers),
            attn.share_heads(memory.pointer_valid.unsqueeze(-1)).squeeze(-1),
        )

        def rest(objects: slice, rows: slice) -> Tensor:
            """What follows on the attention to space, of some places: (n, l, C)."""
            near, out, lse = (attn.part(t, objects, rows) for t in (q, *spatial))
            masked = _masked_attention(near, *(attn.part(t, objects) for t in pointers))
            looked = attn.merge_heads(join((out, lse), masked).to(x.dtype))
            y = x[objects, rows] + folded.cross_output(looked)
            return y + self.linear2(self.activation(self.linear1(self.layer_norm3(y))))

        return in_blocks(rest, x, x.shape, ROWS)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over a few keys, some of them absent: as `attention.plain`, valid (N, K)."""
    scores = torch.bmm(q.float(), k.float().transpose(1, 2))
    scores = scores.masked_fill(~valid.unsqueeze(1), -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # Without any key the sum is -inf: nothing is added, and `join` gives it no weight.
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    # What fills an absent key's place may be NaN, which a weight of 0 would let through.
    present = v.float().masked_fill(~valid.unsqueeze(-1), 0.0)
    return torch.bmm((scores - finite.unsqueeze(-1)).exp(), present), lse


class MemoryAttention(DerivedModule[Tensor]):
    """The stack of layers. `prologue` once for each frame, `forward` for each object."""

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(config) for _ in range(config.memory_attention_num_layers)
        )
        self.layer_norm = nn.LayerNorm(config.memory_attention_hidden_size)

    def derive(self) -> Tensor:
        """The rotary turns of the feature grid."""
        config = self.config
        inner = config.memory_attention_hidden_size // config.memory_attention_downsample_rate
        return rotary_turns(
            *config.feature_size,
            inner // config.memory_attention_num_attention_heads,
            float(config.rope_parameters["rope_theta"]),
            self.layer_norm.weight.device,
        )

    def prologue(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layer does before it reads memory: (B, L, C) → tokens, queries."""
        first = self.layers[0]
        assert isinstance(first, MemoryAttentionLayer)
        return first.before_memory(tokens, self.derived())

    def forward(self, tokens: Tensor, queries: Tensor, memory: MemoryKeys) -> Tensor:
        """tokens (N, L, C) and queries (N, L, C') of `prologue` → conditioned (N, L, C)."""
        turns = self.derived()
        x = tokens
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, MemoryAttentionLayer)
            if index > 0:
                x, queries = layer.before_memory(x, turns)
            x = layer.after_queries(x, queries, memory, turns)
        return self.layer_norm(x)
