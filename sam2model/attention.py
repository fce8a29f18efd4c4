"""Attention of many queries over many keys, and which kernel does it fastest here.

Knows nothing of memory. Every kernel returns the log-sum-exp beside its output, so that
attention over two sets of keys can be joined exactly: `join`.
"""

import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

QUERY_BLOCK, KEY_BLOCK = 512, 1024  # their fp32 scores fill 2 MB, one core's second-level cache


def blocked(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Online softmax over blocks of keys, in fp32: for processors.

    q: (N, L, D) scaled; k: (N, K, D); v: (N, K, V), V free → (N, L, V) and lse (N, L) fp32.
    """
    q, k, v = q.float(), k.float(), v.float()
    keys = k.transpose(1, 2)
    outputs, sums = [], []
    for start in range(0, q.shape[1], QUERY_BLOCK):
        queries = q[:, start : start + QUERY_BLOCK]
        top = q.new_full((*queries.shape[:2], 1), -torch.inf)
        total = q.new_zeros(top.shape)
        out = q.new_zeros((*queries.shape[:2], v.shape[-1]))
        for begin in range(0, k.shape[1], KEY_BLOCK):
            scores = torch.bmm(queries, keys[:, :, begin : begin + KEY_BLOCK])
            new_top = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            shrink = (top - new_top).exp_()
            scores.sub_(new_top).exp_()
            total.mul_(shrink).add_(scores.sum(dim=-1, keepdim=True))
            out.mul_(shrink).baddbmm_(scores, v[:, begin : begin + KEY_BLOCK])
            top = new_top
        outputs.append(out.div_(total))
        sums.append((top + total.log()).squeeze(-1))
    return torch.cat(outputs, dim=1), torch.cat(sums, dim=1)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own fused kernels; shapes as in `blocked`.

    On a CPU they want values as wide as the keys, so values are padded with zeros.
    """
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    width = v.shape[-1]
    if q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, scale=1.0
        )
        return out.squeeze(1), lse.squeeze(1)[:, : q.shape[2]]
    v = F.pad(v, (0, q.shape[-1] - width))
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
        _chosen[key] = _fastest(q, v.shape[-1])
    return _chosen[key](q, k, v)


def _fastest(like: Tensor, value_width: int) -> Kernel:
    """Time each kernel on a small problem of this kind and keep the best."""
    q = torch.randn(1, 1024, like.shape[-1], device=like.device, dtype=like.dtype)
    k = torch.randn(1, 4096, like.shape[-1], device=like.device, dtype=like.dtype)
    v = torch.randn(1, 4096, value_width, device=like.device, dtype=like.dtype)
    names = ["sdpa"] if like.device.type == "cuda" else ["sdpa", "blocked"]
    seconds = {name: _time(KERNELS[name], q, k, v) for name in names}
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
    """Seconds of the best of three calls after one to warm up."""

    def once() -> float:
        if q.device.type == "cuda":
            torch.cuda.synchronize(q.device)
        start = time.perf_counter()
        kernel(q, k, v)
        if q.device.type == "cuda":
            torch.cuda.synchronize(q.device)
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(3))
