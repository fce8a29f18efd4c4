"""Tensors between a device and the host, without making either wait. Knows not what they are.

Copies run on a stream of their own, so that neither computing nor the thread that asks stands
still. On a processor's own memory there is nothing to copy, and everything is ready at once.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """Tensors in host memory, pinned where they came from a GPU; read them by `wait` or `on`."""

    tensors: tuple[Tensor, ...]
    copied: "torch.cuda.Event | None" = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, once they are there: for threads that may wait."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors on a device; its stream waits for them, the thread does not."""
        if device.type != "cuda":
            return self.wait()
        if self.copied is not None:
            torch.cuda.current_stream(device).wait_event(self.copied)
        return tuple(t.to(device, non_blocking=True) for t in self.tensors)


def park(*tensors: Tensor) -> Parked:
    """Begin to copy tensors to the host; nobody may write to them any more."""
    device = tensors[0].device
    if device.type != "cuda":
        return Parked(tensors)
    stream = _copying_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        copies = []
        for tensor in tensors:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(copy.copy_(tensor, non_blocking=True))
            tensor.record_stream(stream)
        copied = torch.cuda.Event()
        copied.record(stream)
    return Parked(tuple(copies), copied)


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """A tensor on its way to a device."""

    _tensor: Tensor
    _copied: "torch.cuda.Event | None" = None

    def arrived(self) -> Tensor:
        """The tensor; the device's present stream waits for it, the thread does not."""
        if self._copied is not None:
            stream = torch.cuda.current_stream(self._tensor.device)
            stream.wait_event(self._copied)
            self._tensor.record_stream(stream)
        return self._tensor


def send(tensor: Tensor, device: torch.device) -> Arriving:
    """Begin to copy a tensor to a device."""
    if device.type != "cuda":
        return Arriving(tensor.to(device))
    stream = _copying_stream(device)
    with torch.cuda.stream(stream):
        moved = tensor.pin_memory().to(device, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(stream)
    return Arriving(moved, copied)


class Mark(Protocol):
    """A place in a device's work; torch.cuda.Event is one."""

    def synchronize(self) -> None: ...


class Pace:
    """Keeps a thread no more than `ahead` pieces of work before its device.

    Launching takes no time and computing does, so that without it somebody who clicks would wait
    for all that was launched before. One piece ahead is enough to keep a device busy.
    """

    def __init__(self, mark: Callable[[], Mark], ahead: int = 2) -> None:
        self._mark, self._ahead = mark, ahead
        self._marks: deque[Mark] = deque()

    def launched(self) -> None:
        """Another piece is launched; waits for the one before the last `ahead`."""
        self._marks.append(self._mark())
        if len(self._marks) > self._ahead:
            self._marks.popleft().synchronize()


def mark_on_cuda() -> Mark:
    """The present place in the present stream's work."""
    event = torch.cuda.Event()
    event.record()
    return event


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
