"""Attention of many queries over many keys, and which kernel does it fastest here.

Knows nothing of memory. Every kernel returns the log-sum-exp beside its output, so that
attention over two sets of keys can be joined exactly: `join`.
"""

import logging
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2model import attention_gpu

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

QUERY_BLOCK, KEY_BLOCK = 512, 1024  # their fp32 scores fill 2 MB, one core's second-level cache


def blocked(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Online softmax over blocks of keys, in fp32: for processors.

    q: (N, L, D) scaled; k: (N, K, D); v: (N, K, V), V free → (N, L, V) and lse (N, L) fp32.
    """
    q, k, v = q.float(), k.float(), v.float()
    count, length, _ = q.shape
    keys = k.transpose(1, 2)
    out = q.new_empty((count, length, v.shape[-1]))
    lse = q.new_empty((count, length))
    buffer = q.new_empty(count * QUERY_BLOCK * KEY_BLOCK)
    for start in range(0, length, QUERY_BLOCK):
        queries, block = q[:, start : start + QUERY_BLOCK], out[:, start : start + QUERY_BLOCK]
        top = total = q.new_empty(0)
        for begin in range(0, k.shape[1], KEY_BLOCK):
            some_keys, some_values = (
                keys[:, :, begin : begin + KEY_BLOCK],
                v[:, begin : begin + KEY_BLOCK],
            )
            shape = (count, queries.shape[1], some_keys.shape[2])
            scores = buffer[: math.prod(shape)].view(shape)
            torch.bmm(queries, some_keys, out=scores)
            highest = scores.amax(dim=-1, keepdim=True)
            if begin == 0:
                top = highest
                total = scores.sub_(top).exp_().sum(dim=-1, keepdim=True)
                torch.bmm(scores, some_values, out=block)
                continue
            higher = torch.maximum(top, highest)
            shrink = (top - higher).exp_()
            top = higher
            total.mul_(shrink).add_(scores.sub_(top).exp_().sum(dim=-1, keepdim=True))
            block.mul_(shrink).baddbmm_(scores, some_values)
        block.div_(total)
        lse[:, start : start + QUERY_BLOCK] = (top + total.log()).squeeze(-1)
    return out, lse


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own fused kernels; shapes as in `blocked`.

    On a CPU they want values as wide as the keys, so the narrower are padded with zeros.
    """
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    width = v.shape[-1]
    if q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, scale=1.0
        )
        return out.squeeze(1), lse.squeeze(1)[:, : q.shape[2]]
    widest = max(q.shape[-1], width)
    q, k, v = (F.pad(t, (0, widest - t.shape[-1])) for t in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=1.0)
    return out[:, 0, :, :width], lse[:, 0]


def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax written out: the definition, for tests, for gradients and for a few keys."""
    scores = torch.bmm(q.float(), k.float().transpose(1, 2))
    lse = scores.logsumexp(dim=-1)
    return torch.bmm((scores - lse.unsqueeze(-1)).exp(), v.float()), lse


def join(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the union of two sets of keys from attention over each, in fp32."""
    (out_a, lse_a), (out_b, lse_b) = first, second
    weight = torch.sigmoid(lse_a.float() - lse_b.float()).unsqueeze(-1)
    return torch.lerp(out_b.float(), out_a.float(), weight)


KERNELS: dict[str, Kernel] = {"blocked": blocked, "sdpa": sdpa, "plain": plain}
_chosen: dict[tuple[str, torch.dtype, int], Kernel] = {}
_forced: Kernel | None = None


def force_kernel(name: str | None) -> None:
    """Use one kernel of KERNELS everywhere, or measure again (None): for repeatable runs."""
    global _forced
    if name is not None and name not in KERNELS:
        raise ValueError(f"attention kernel {name!r}; wanted one of {sorted(KERNELS)}")
    _forced = None if name is None else KERNELS[name]


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention by the kernel that measured fastest on this device, dtype and value width.

    q: (N, L, D) already scaled; k: (N, K, D); v: (N, K, V) → (N, L, V), lse (N, L).
    """
    if _forced is not None:
        return _forced(q, k, v)
    if q.requires_grad or k.requires_grad or v.requires_grad:
        return plain(q, k, v)  # the fused kernels' log-sum-exp has no gradient
    key = (q.device.type, q.dtype, v.shape[-1])
    if key not in _chosen:
        if q.device.type == "cuda":
            _chosen[key] = attention_gpu.fastest(q, v.shape[-1], attention_gpu.candidates(), plain)
        else:
            _chosen[key] = _fastest(q, v.shape[-1])
    return _chosen[key](q, k, v)


def _fastest(like: Tensor, value_width: int) -> Kernel:
    """Time each kernel on a small problem of this kind and keep the best."""
    generator = torch.Generator(like.device)  # of its own: the caller's numbers stay repeatable

    def noise(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=like.device)
        return values.to(like.dtype)

    width = like.shape[-1]
    q, k, v = noise(1, 1024, width), noise(1, 4096, width), noise(1, 4096, value_width)
    names = ["sdpa", "blocked"]
    # Turn by turn and the best of each, so that a busy machine slows all kernels alike.
    rounds = [{name: _time(KERNELS[name], q, k, v) for name in names} for _ in range(5)]
    seconds = {name: min(r[name] for r in rounds) for name in names}
    best = min(seconds, key=lambda name: seconds[name])
    log.info(
        "attention on %s %s, values %d wide: %s (%s)",
        like.device.type,
        like.dtype,
        value_width,
        best,
        ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in seconds.items()),
    )
    return KERNELS[best]


def _time(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Seconds of one call, the device idle before and after."""
    synchronize(q.device)
    start = time.perf_counter()
    kernel(q, k, v)
    synchronize(q.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a device to finish; a processor always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
