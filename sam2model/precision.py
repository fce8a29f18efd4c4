"""Which number format multiplies fastest on a device. Knows nothing of models."""

import logging
import time
from functools import cache

import torch

log = logging.getLogger(__name__)


@cache
def fastest_dtype(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    """`wanted`, or fp32 on a processor that multiplies fp32 faster than `wanted`.

    Processors without bf16 matrix units convert on the way in and out. Measured once in a
    process.
    """
    if device.type != "cpu" or wanted == torch.float32:
        return wanted
    generator = torch.Generator()  # of its own: the caller's numbers stay repeatable
    matrices = {
        d: torch.randn((1024, 1024), generator=generator).to(d) for d in (wanted, torch.float32)
    }

    def seconds(matrix: torch.Tensor) -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        return time.perf_counter() - start

    # Turn by turn and the best of each, so that a busy machine slows both alike.
    rounds = [{d: seconds(m) for d, m in matrices.items()} for _ in range(5)]
    best = {d: min(r[d] for r in rounds) for d in matrices}
    fastest = min(best, key=lambda d: best[d])
    log.info(
        "computing in %s (%s)",
        fastest,
        ", ".join(f"{d} {2 * 1024**3 / s / 1e9:.0f} GFLOP/s" for d, s in best.items()),
    )
    return fastest
