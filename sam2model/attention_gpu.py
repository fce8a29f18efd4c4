"""Which attention a GPU does fastest: libraries' kernels and ours, checked and then timed.

Knows nothing of memory. What a library offers differs by card and version, and some of it is no
promised interface: a candidate that fails, or answers wrongly, is left out and the log says why.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2model import attention_triton

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
Problem = tuple[Tensor, Tensor, Tensor, float]  # queries, keys, values, scale
Clock = Callable[[Callable[[], object]], float]

# Four objects that each remember seven frames, and a frame with itself, at 1,024 px.
OBJECTS, PLACES, REMEMBERED = 4, 4096, 7 * 4096
ROUNDS = 5
# bf16 has 8 bits, and weights are rounded to it before they are summed up.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def candidates(is_narrow: bool = True) -> dict[str, Kernel]:
    """Attention kernels that may be here, by name.

    is_narrow: values have fewer channels than keys; else ours has nothing to win.
    """
    found: dict[str, Kernel] = {
        "memory-efficient": _efficient,
        "flash": _flash,
        "cudnn": _cudnn,
        "flex": _flex,
    }
    if is_narrow and attention_triton.is_available():
        for tiling in attention_triton.TILINGS:
            found[f"triton {tiling}"] = partial(attention_triton.attention, tiling=tiling)
    return found


def fastest(
    like: Tensor,
    value_width: int,
    kernels: Mapping[str, Kernel],
    definition: Kernel,
    clock: Clock | None = None,
) -> Kernel:
    """The fastest of the kernels that agree with the definition, on problems like these queries.

    clock: seconds that some work takes; by default the device's own. Falls back to the definition
    where no kernel works at all.
    """
    clock = clock or _device_seconds
    width = like.shape[-1]
    small = _problem(like, 2, 200, 333, width, value_width)
    right = {name: k for name, k in kernels.items() if _is_right(name, k, definition, small)}
    keys = REMEMBERED if value_width < width else PLACES
    large = _problem(like, OBJECTS, PLACES, keys, width, value_width)
    seconds: dict[str, float] = {}
    for name, kernel in right.items():
        try:
            kernel(*large)
            seconds[name] = min(clock(partial(kernel, *large)) for _ in range(ROUNDS))
        except Exception as error:  # whatever a library raises: it is one candidate of several
            log.info("attention by %s: left out: %s", name, _first_line(error))
    if not seconds:
        log.warning("no attention kernel works here; computing it as it is defined")
        return definition
    work = 2.0 * OBJECTS * PLACES * keys * (width + value_width)
    for name in sorted(seconds, key=lambda name: seconds[name]):
        log.info(
            "attention by %s: %.3f ms, %.0f TFLOP/s",
            *(name, seconds[name] * 1e3, work / seconds[name] / 1e12),
        )
    best = min(seconds, key=lambda name: seconds[name])
    log.info("attention with values %d wide in %s: by %s", value_width, like.dtype, best)
    return right[best]


def left_alone(kernel: Kernel) -> Kernel:
    """The kernel as compilers of what is around it must take it: whole."""

    def whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return kernel(q, k, v, scale)

    left: Kernel = torch.compiler.disable(whole)
    return left


def _problem(
    like: Tensor, count: int, queries: int, keys: int, width: int, value_width: int
) -> Problem:
    generator = torch.Generator(like.device)  # of its own: the caller's numbers stay repeatable

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=like.device).to(like.dtype)

    q, k, v = (
        noise(count, queries, width),
        noise(count, keys, width),
        noise(count, keys, value_width),
    )
    return q, k, v, width**-0.5


def _is_right(name: str, kernel: Kernel, definition: Kernel, problem: Problem) -> bool:
    try:
        out, lse = kernel(*problem)
    except Exception as error:  # whatever a library raises: it is one candidate of several
        log.info("attention by %s: left out: %s", name, _first_line(error))
        return False
    wanted_out, wanted_lse = definition(*problem)
    most = TOLERANCE[problem[0].dtype]
    for got, wanted in ((out, wanted_out), (lse, wanted_lse)):
        off = float((got.float() - wanted).abs().max() / wanted.abs().max())
        if got.shape != wanted.shape or not off <= most:
            log.warning("attention by %s: left out: wrong by %.1e of its values", name, off)
            return False
    return True


def _device_seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _efficient(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads = (t.unsqueeze(1) for t in (q, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        *heads, None, True, scale=scale
    )
    return out.squeeze(1), lse.squeeze(1)[:, : q.shape[1]]


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention, of whichever version is active; values are widened to the keys."""
    width = v.shape[-1]
    wide = F.pad(v, (0, q.shape[-1] - width))
    heads = (t.unsqueeze(1) for t in (q, k, wide))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*heads, scale=scale)
    return out[:, 0, :, :width], lse.squeeze(1)[:, : q.shape[1]]


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads = (t.unsqueeze(1) for t in (q, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *heads, None, True, scale=scale
    )
    return out.squeeze(1), lse.reshape(q.shape[0], -1)[:, : q.shape[1]]


def _flex(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """PyTorch's flexible attention, whose values may be narrower than its keys."""
    attend, request = _compiled_flex()
    heads = (t.unsqueeze(1) for t in (q, k, v))
    out, more = attend(*heads, scale=scale, return_aux=request)
    return out.squeeze(1), more.lse.squeeze(1)


@cache
def _compiled_flex() -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    return torch.compile(flex_attention, dynamic=False), AuxRequest(lse=True)
