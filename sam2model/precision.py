"""Which number format a device computes in. Knows nothing of models."""

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)

# Instructions that multiply bf16 numbers: without them each product is taken apart into fp32.
BF16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16")


@cache
def compute_dtype(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    """`wanted`, or fp32 on a processor that cannot multiply `wanted`.

    By the processor's instructions and not by the clock, which a busy machine misleads.
    """
    if device.type != "cpu" or wanted == torch.float32:
        return wanted
    capabilities = torch.cpu.get_capabilities()
    able = [name for name in BF16_PRODUCTS if capabilities.get(name)]
    if wanted == torch.bfloat16 and able:
        log.info("computing in %s: the processor has %s", wanted, able[0])
        return wanted
    log.info(
        "computing in torch.float32: the processor has no products of %s, wanted one of %s",
        wanted,
        ", ".join(BF16_PRODUCTS),
    )
    return torch.float32
