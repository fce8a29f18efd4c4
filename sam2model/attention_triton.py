"""Attention whose values are narrower than its keys, as one Triton kernel. Knows nothing of memory.

SAM 2 compares 256 channels and fetches 64, which no library's fused kernel is made for. Softmax
runs over blocks of keys in fp32; scores never leave the chip. Triton comes with PyTorch's CUDA
packages and is imported on first use only. With TRITON_INTERPRET=1 in the environment the kernel
runs on a processor, which is how it is tested without a GPU.
"""

from __future__ import annotations  # the kernel's name what is imported late

import math
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl
else:
    tl = None  # imported when it is needed; Triton looks its names up in this module


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one program divides the work; which is fastest depends on the GPU.

    queries, keys: rows of one block. warps, stages: of Triton.
    """

    queries: int
    keys: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.queries}×{self.keys}, {self.warps} warps, {self.stages} stages"


# From much to little shared memory: at 256/64 channels in 16 bits 225, 144, 112, 96 and 56 KiB.
# An H100 has 227 KiB a block, an A100 163, smaller cards 99.
TILINGS = (
    Tiling(128, 64, 8, 4),
    Tiling(128, 64, 8, 2),
    Tiling(128, 64, 4, 2),
    Tiling(128, 32, 8, 3),
    Tiling(64, 64, 4, 2),
    Tiling(64, 32, 4, 2),
)


def is_available() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 1.0,
    tiling: Tiling = TILINGS[1],
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp.

    q: (N, L, D); k: (N, K, D); v: (N, K, V) → (N, L, V) fp32 and lse (N, L) fp32.
    Scores are q·k · scale.
    lengths: (N,) int32, how many keys each row has; None: all K. A row without keys gives zeros
    and an lse of -inf.
    """
    count, length, width = q.shape
    keys, value_width = k.shape[1], v.shape[2]
    out = torch.empty((count, length, value_width), dtype=torch.float32, device=q.device)
    lse = torch.empty((count, length), dtype=torch.float32, device=q.device)
    blocks = -(-length // tiling.queries)
    _kernel()[(blocks, count)](
        *(q, k, v, out, lse, q if lengths is None else lengths),
        *(length, keys, scale * math.log2(math.e)),
        *q.stride(),
        *k.stride(),
        *v.stride(),
        width=width,
        value_width=value_width,
        wide=_at_least_16(width),
        narrow=_at_least_16(value_width),
        query_block=tiling.queries,
        key_block=tiling.keys,
        has_lengths=lengths is not None,
        # Triton's interpreter multiplies bf16 as if they were whole numbers.
        widens=os.environ.get("TRITON_INTERPRET") == "1",
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out, lse


def _at_least_16(width: int) -> int:
    """The power of two that holds so many channels; the matrix units take no fewer than 16."""
    return max(16, 1 << (width - 1).bit_length())


@cache
def _kernel() -> Any:
    """The compiled, or interpreted, kernel."""
    global tl
    import triton
    import triton.language

    tl = triton.language
    return triton.jit(_attention)


def _attention(  # type: ignore[no-untyped-def]  # Triton reads these annotations
    q,
    k,
    v,
    out,
    lse,
    lengths,
    num_queries,
    num_keys,
    scale,  # times log2(e)
    q_row,
    q_place,
    q_channel,
    k_row,
    k_place,
    k_channel,
    v_row,
    v_place,
    v_channel,
    width: tl.constexpr,
    value_width: tl.constexpr,
    wide: tl.constexpr,
    narrow: tl.constexpr,
    query_block: tl.constexpr,
    key_block: tl.constexpr,
    has_lengths: tl.constexpr,
    widens: tl.constexpr,
) -> None:
    """One block of queries of one row over all of its keys. Exponentials are of base 2."""
    row = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * query_block + tl.arange(0, query_block)
    channels = tl.arange(0, wide)
    value_channels = tl.arange(0, narrow)
    is_query = queries < num_queries
    here = tl.load(
        q + row * q_row + queries[:, None] * q_place + channels[None, :] * q_channel,
        mask=is_query[:, None] & (channels[None, :] < width),
        other=0.0,
    )
    if widens:
        here = here.to(tl.float32)
    end = num_keys
    if has_lengths:
        end = tl.load(lengths + row)
    highest = tl.full([query_block], float("-inf"), tl.float32)
    total = tl.zeros([query_block], tl.float32)
    sums = tl.zeros([query_block, narrow], tl.float32)
    for start in range(0, end, key_block):
        keys = start + tl.arange(0, key_block)
        is_key = keys < end
        there = tl.load(
            k + row * k_row + keys[None, :] * k_place + channels[:, None] * k_channel,
            mask=is_key[None, :] & (channels[:, None] < width),
            other=0.0,
        )
        if widens:
            there = there.to(tl.float32)
        # In fp32 all of its digits count: no TF32.
        scores = tl.dot(here, there, input_precision="ieee") * scale
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(
            v + row * v_row + keys[:, None] * v_place + value_channels[None, :] * v_channel,
            mask=is_key[:, None] & (value_channels[None, :] < value_width),
            other=0.0,
        )
        weights = weights.to(values.dtype)
        if widens:
            weights, values = weights.to(tl.float32), values.to(tl.float32)
        sums = sums * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        highest = higher
    has_keys = total > 0
    sums = sums / tl.where(has_keys, total, 1.0)[:, None]
    tl.store(
        out + (row * num_queries + queries[:, None]) * value_width + value_channels[None, :],
        sums,
        mask=is_query[:, None] & (value_channels[None, :] < value_width),
    )
    together = highest * 0.6931471805599453 + tl.log(tl.where(has_keys, total, 1.0))  # ln(2)
    tl.store(lse + row * num_queries + queries, together, mask=is_query)
