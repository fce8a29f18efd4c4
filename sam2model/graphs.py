"""Work of fixed shapes, told to a GPU once and then repeated by one call. Knows no network.

A step of tracking is some hundred small kernels; launching them costs a processor more than a GPU
takes for the smaller steps. Inputs are copied into buffers that belong to the graph, outputs out
of them, so that nobody outside ever holds memory which the next replay overwrites.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

log = logging.getLogger(__name__)

R = TypeVar("R")  # a tensor, None, or a tuple or a dataclass of such


class Runner(Protocol):
    """Does work on inputs of tensors, tuples and dataclasses of tensors, and None."""

    def run(self, name: str, work: Callable[..., R], *inputs: Any) -> R: ...


class Directly:
    """Does the work."""

    def run(self, name: str, work: Callable[..., R], *inputs: Any) -> R:
        del name
        return work(*inputs)


class Recording(Protocol):
    """Work that can be done again on the same buffers; `outputs` are always the same tensors."""

    outputs: Any

    def replay(self) -> None: ...


Record = Callable[[Callable[[], Any]], Recording]


class CudaRecording:
    """A CUDA graph. Graphs share their working memory, for they run one after the other."""

    def __init__(self, work: Callable[[], Any], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on copying and waiting meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = work()

    def replay(self) -> None:
        self._graph.replay()


def record_on_cuda() -> Record:
    """Makes CUDA graphs that share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()
    return lambda work: CudaRecording(work, pool)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    inputs: list[Tensor]
    recording: Recording


class GraphRunner:
    """Records work once it has been seen `after` times in the same shapes, and replays it.

    One thread may use it, on one stream. most: recordings kept, the least used leave first.
    """

    def __init__(self, record: Record, after: int = 2, most: int = 128) -> None:
        self._record = record
        self._after, self._most = after, most
        self._seen: Counter[Hashable] = Counter()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._buffers: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    @property
    def keys(self) -> list[Hashable]:
        """What is recorded: names and shapes."""
        return list(self._entries)

    def run(self, name: str, work: Callable[..., R], *inputs: Any) -> R:
        """The outputs of work(*inputs), in memory of their own.

        The first times it is done as it is: whatever a kernel or a library measures, folds or
        allocates on its first call must not happen within a recording.
        """
        tensors = list(tensors_of(inputs))
        key = (name, form_of(inputs), tuple((tuple(t.shape), t.dtype) for t in tensors))
        if key not in self._entries:
            self._seen[key] += 1
            if self._seen[key] <= self._after:
                return work(*inputs)
            self._entries[key] = self._new_entry(work, inputs, tensors)
            log.info("recorded %s as graph %d", name, len(self._entries))
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        entry = self._entries[key]
        for mine, given in zip(entry.inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        entry.recording.replay()
        outputs = entry.recording.outputs
        copies = iter([t.clone() for t in tensors_of(outputs)])
        return cast(R, rebuilt(outputs, copies))

    def _new_entry(self, work: Callable[..., Any], inputs: Any, tensors: list[Tensor]) -> _Entry:
        mine = [self._buffer(place, t) for place, t in enumerate(tensors)]
        for buffer, given in zip(mine, tensors, strict=True):
            buffer.copy_(given)
        arguments = rebuilt(inputs, iter(mine))
        return _Entry(mine, self._record(lambda: work(*arguments)))

    def _buffer(self, place: int, like: Tensor) -> Tensor:
        """Memory for an input; graphs of other shapes use the same, for one runs at a time."""
        buffers = self._buffers.setdefault((place, like.dtype), [])
        fitting = [b for b in buffers if b.numel() >= like.numel()]
        if not fitting:
            fitting = [torch.empty(like.numel(), dtype=like.dtype, device=like.device)]
            buffers += fitting
        return fitting[0][: like.numel()].view(like.shape)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """All tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from tensors_of(part)
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from tensors_of(getattr(tree, field.name))


def rebuilt(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree with other tensors, in the order of `tensors_of`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, tuple):
        return tuple(rebuilt(part, tensors) for part in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        parts = {f.name: rebuilt(getattr(tree, f.name), tensors) for f in fields(tree)}
        return type(tree)(**parts)
    return tree


def form_of(tree: Any) -> Hashable:
    """What a tree is but for its tensors."""
    if isinstance(tree, Tensor):
        return "tensor"
    if isinstance(tree, tuple):
        return tuple(form_of(part) for part in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return (type(tree), *(form_of(getattr(tree, f.name)) for f in fields(tree)))
    assert tree is None or isinstance(tree, (int, bool, str)), tree
    return tree
