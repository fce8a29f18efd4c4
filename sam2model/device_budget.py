"""How many objects of a step a device's memory has room for. Knows nothing of what a step does."""

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

SHARE = 0.7  # of what is free: for the steps; the rest for memories, features and fragments


def slots_that_fit(peak_bytes: Callable[[int], int], free_bytes: int, wanted: int) -> int:
    """`wanted`, or as many slots as fit; at least 1.

    peak_bytes: memory that a step of so many objects takes, measured; it grows evenly with them.
    """
    few, more = 1, min(4, wanted)
    least = peak_bytes(few)
    per_slot = (peak_bytes(more) - least) / (more - few) if more > few else least
    room = SHARE * free_bytes - least
    fitting = wanted if per_slot <= 0 else 1 + int(max(room, 0) / per_slot)
    slots = max(1, min(wanted, fitting))
    log.info(
        "%d objects a step (%d wanted): %.2f GiB for one, %.2f GiB for each more, %.1f GiB free",
        *(slots, wanted, least / 2**30, per_slot / 2**30, free_bytes / 2**30),
    )
    return slots


def peak_bytes_on_cuda(work: Callable[[int], object], device: torch.device) -> Callable[[int], int]:
    """Measures work on a GPU. Work that has no room counts as more than the device has."""

    def measure(slots: int) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            work(slots)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return torch.cuda.get_device_properties(device).total_memory
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    return measure


def free_bytes_on_cuda(device: torch.device) -> int:
    """What other processes and this one have left."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
