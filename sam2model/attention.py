"""Attention of many queries over many keys, and which kernel does it on a device.

Knows nothing of memory. Every kernel returns the log-sum-exp beside its output, so that
attention over two sets of keys can be joined exactly: `join`.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2model import attention_gpu
from sam2model.host_threads import run_parts

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

KEY_BLOCK = 1024
QUERY_BLOCK_BYTES = 2 * 1024 * 1024  # of scores: about one core's second-level cache
LOG2_E = math.log2(math.e)


def blocked(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Softmax over blocks of keys, its products in the inputs' dtype: for processors.

    q: (N, L, D); k: (N, K, D); v: (N, K, V), V free → (N, L, V) and lse (N, L), both fp32. Scores
    are q·k times `scale`.
    What a block adds is relative to a guess of each row's highest score, made from a few of the
    keys: the guess goes into the product's fp32 sum, so that in bf16 the scores that weigh most
    are rounded least, and no block waits for the maximum of another. Powers of 2 cost less than
    those of e. Rows whose guess was so low that a sum overflowed are done again from all keys.
    """
    count, length, _ = q.shape
    out = q.new_empty((count, length, v.shape[-1]), dtype=torch.float32)
    lse = q.new_empty((count, length), dtype=torch.float32)
    largest = QUERY_BLOCK_BYTES // (KEY_BLOCK * q.element_size())
    rows = min(largest, max(128, -(-count * length // torch.get_num_threads())))

    def part(n: int, some: slice) -> Callable[[], None]:
        return lambda: _blocked_rows(q[n, some], k[n], v[n], scale, out[n, some], lse[n, some])

    starts = range(0, length, rows)
    run_parts([part(n, slice(s, s + rows)) for n in range(count) for s in starts])
    return out, lse


def _blocked_rows(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """`blocked` for some queries (L, D) of one sequence, into out (L, V) and lse (L,)."""
    keys = k.t()
    step = min(15, 1 + len(k) // 64)  # 15: another column in each row of a map of 64×64
    _rows_relative_to(_highest(q, keys[:, ::step]), q, keys, v, scale, out, lse)
    if not bool(lse.isfinite().all()):
        highest = torch.cat([_highest(q, some) for some in keys.split(KEY_BLOCK, dim=1)], dim=1)
        highest = highest.amax(dim=1, keepdim=True)
        _rows_relative_to(highest, q, keys, v, scale, out, lse)


def _highest(q: Tensor, keys: Tensor) -> Tensor:
    """Each query's highest product with any of these keys (D, K): (L, 1)."""
    return torch.mm(q, keys).amax(dim=1, keepdim=True)


def _rows_relative_to(
    highest: Tensor, q: Tensor, keys: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor
) -> None:
    """Softmax of q (L, D) over keys (D, K), each row relative to its highest (L, 1)."""
    exponent = scale * LOG2_E  # of 2, for a product of 1
    minus_top = highest * -exponent
    total = torch.zeros_like(minus_top, dtype=torch.float32)
    out.zero_()
    buffer = q.new_empty(len(q) * min(KEY_BLOCK, keys.shape[1]))
    for some_keys, some_values in zip(
        keys.split(KEY_BLOCK, dim=1), v.split(KEY_BLOCK), strict=True
    ):
        weights = buffer[: len(q) * some_keys.shape[1]].view(len(q), -1)
        torch.addmm(minus_top, q, some_keys, alpha=exponent, out=weights)
        torch.exp2(weights, out=weights)
        total += weights.sum(dim=1, keepdim=True, dtype=torch.float32)
        out += torch.mm(weights, some_values)
    out /= total
    torch.sub(total.log2(), minus_top, out=total)
    lse.copy_(total.squeeze(1)).div_(LOG2_E)


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """PyTorch's own fused kernels; shapes as in `blocked`.

    On a CPU they want values as wide as the keys, so the narrower are padded with zeros.
    """
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    width = v.shape[-1]
    if q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, scale=scale
        )
        return out.squeeze(1), lse.squeeze(1)[:, : q.shape[2]]
    widest = max(q.shape[-1], width)
    q, k, v = (F.pad(t, (0, widest - t.shape[-1])) for t in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    return out[:, 0, :, :width], lse[:, 0]


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Softmax written out: the definition, for tests, for gradients and for a few keys."""
    scores = torch.bmm(q.float(), k.float().transpose(1, 2)) * scale
    lse = scores.logsumexp(dim=-1)
    return torch.bmm((scores - lse.unsqueeze(-1)).exp(), v.float()), lse


def join(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the union of two sets of keys from attention over each, in fp32."""
    (out_a, lse_a), (out_b, lse_b) = first, second
    weight = torch.sigmoid(lse_a.float() - lse_b.float()).unsqueeze(-1)
    return torch.lerp(out_b.float(), out_a.float(), weight)


KERNELS: dict[str, Kernel] = {"blocked": blocked, "sdpa": sdpa, "plain": plain}
# On a processor timing would mislead whenever the machine is busy, and masks would differ in
# their last bits from run to run. `blocked` does less there in any case: PyTorch's kernel
# multiplies bf16 numbers as fp32, which costs four times as much where the processor has bf16
# products, and wants values of 64 channels padded to the 256 of the keys.
CANDIDATES: dict[str, tuple[str, ...]] = {"cpu": ("blocked",), "cuda": ("sdpa",)}
_chosen: dict[tuple[str, torch.dtype, int], Kernel] = {}
_forced: Kernel | None = None


def force_kernel(name: str | None) -> None:
    """Use one kernel of KERNELS everywhere, or choose again (None)."""
    global _forced
    if name is not None and name not in KERNELS:
        raise ValueError(f"attention kernel {name!r}; wanted one of {sorted(KERNELS)}")
    _forced = None if name is None else KERNELS[name]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Attention by the device's kernel, of several by the one that measured fastest.

    q: (N, L, D); k: (N, K, D); v: (N, K, V) → (N, L, V), lse (N, L). Scores are q·k · scale.
    """
    if _forced is not None:
        return _forced(q, k, v, scale)
    if q.requires_grad or k.requires_grad or v.requires_grad:
        return plain(q, k, v, scale)  # the fused kernels' log-sum-exp has no gradient
    key = (q.device.type, q.dtype, v.shape[-1])
    if key not in _chosen:
        if q.device.type == "cuda":
            kernels = attention_gpu.candidates(is_narrow=v.shape[-1] < q.shape[-1])
            fastest = attention_gpu.fastest(q, v.shape[-1], kernels, plain)
            _chosen[key] = attention_gpu.left_alone(fastest)
        else:
            _chosen[key] = _choose(q, v.shape[-1])
    return _chosen[key](q, k, v, scale)


def _choose(like: Tensor, value_width: int) -> Kernel:
    """The only candidate of this device, or the one that does a small problem fastest."""
    names = CANDIDATES.get(like.device.type, ("plain",))
    seconds = _measure(names, like, value_width) if len(names) > 1 else dict.fromkeys(names, 0.0)
    best = min(seconds, key=lambda name: seconds[name])
    log.info(
        "attention on %s %s, values %d wide: %s%s",
        like.device.type,
        like.dtype,
        value_width,
        best,
        "".join(f", {name} {s * 1e3:.1f} ms" for name, s in seconds.items() if s),
    )
    return KERNELS[best]


def _measure(names: Sequence[str], like: Tensor, value_width: int) -> dict[str, float]:
    """Seconds of each kernel for a problem like this one."""
    generator = torch.Generator(like.device)  # of its own: the caller's numbers stay repeatable

    def noise(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=like.device)
        return values.to(like.dtype)

    width = like.shape[-1]
    q, k, v = noise(1, 1024, width), noise(1, 4096, width), noise(1, 4096, value_width)
    # Turn by turn and the best of each, so that a busy machine slows all kernels alike.
    rounds = [{name: _time(KERNELS[name], q, k, v) for name in names} for _ in range(5)]
    return {name: min(r[name] for r in rounds) for name in names}


def _time(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Seconds of one call, the device idle before and after."""
    synchronize(q.device)
    start = time.perf_counter()
    kernel(q, k, v, 1.0)
    synchronize(q.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a device to finish; a processor always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
