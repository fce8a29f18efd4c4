"""Seconds of alternatives that take turns. Knows nothing of what they do.

A busy machine slows both sides of a turn alike, so ratios hold where seconds do not. Processor
seconds, of all threads, leave out what other programs took as well. Also what a process held.
"""

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch

from sam2model.attention import synchronize

P = ParamSpec("P")
T = TypeVar("T")
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(slots=True)
class Turns:
    """What each side took in each of its turns, in seconds."""

    device: torch.device
    wall_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def time(self, side: str, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Let a side have its turn, the device idle before and after."""
        synchronize(self.device)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        result = call(*args, **named)
        synchronize(self.device)
        self.wall_s[side].append(time.perf_counter() - wall_s)
        self.cpu_s[side].append(time.process_time() - cpu_s)
        return result

    def median_s(self, side: str) -> float:
        """A turn's seconds by the clock."""
        return statistics.median(self.wall_s[side])

    def median_cpu_s(self, side: str) -> float:
        """A turn's seconds of processors, all threads together."""
        return statistics.median(self.cpu_s[side])

    def best_s(self, side: str) -> float:
        """The seconds of the turn that was disturbed least."""
        return min(self.wall_s[side])


def peak_bytes() -> int:
    """The most memory that this process has held since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT_BYTES
