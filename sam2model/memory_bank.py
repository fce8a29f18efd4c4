"""What is remembered of each object, for how long and why. Knows nothing of images or layers.

An object remembers every frame on which a person prompted it (conditioning), the masks of the
last `num_maskmem - 1` frames and the pointers of the last `max_pointers - 1`, counted along
the direction of the pass; a frame that is missing from that window leaves a hole. Memories
live in pages of two tensors that all objects share, as sequences do in a language model's
server, so one gather serves a step over any objects of any videos, and a page is free again
as soon as no later step can read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Direction = Literal[1, -1]  # forward or backward in time

# Masks are remembered in bf16 even in an fp32 run, as both reference models do.
REMEMBERED_AS = torch.bfloat16


@dataclass(frozen=True, slots=True)
class BankLimits:
    """What one step may read, from the model's configuration.

    max_conditioning: conditioning frames read by a step; -1 means all.
    """

    recent_masks: int
    recent_pointers: int
    max_conditioning: int


@dataclass(frozen=True, slots=True)
class Page:
    """What a prompt left of one frame. mask: (L, C_mem) bf16; pointer: (C,)."""

    mask: Tensor
    pointer: Tensor


@dataclass(frozen=True, slots=True)
class RecentPages:
    """What a pass left of the last frames. masks: (M, L, C_mem) bf16; pointers: (P, C).

    mask_frames and pointer_frames name their rows.
    """

    mask_frames: tuple[int, ...]
    masks: Tensor
    pointer_frames: tuple[int, ...]
    pointers: Tensor


@dataclass(slots=True)
class Recall:
    """Which pages one object reads on one frame: host integers, no tensors.

    mask_pages and time_rows go together: row 0 is one frame ago, the last row a prompt.
    pointer_pages and pointer_distances (frames, signed along the pass) go together.
    """

    mask_pages: list[int]
    time_rows: list[int]
    pointer_pages: list[int]
    pointer_distances: list[int]


@dataclass(frozen=True, slots=True)
class Readout:
    """The memories of N objects with M frames each.

    masks: (N, M, L, C_mem); time_rows: (N, M) int64; pointers: (N, P, C);
    pointer_offsets: (N, P) fp32, distance over the pass's pointer span; pointer_valid: (N, P).
    """

    masks: Tensor
    time_rows: Tensor
    pointers: Tensor
    pointer_offsets: Tensor
    pointer_valid: Tensor


class PagePool:
    """A tensor of equal pages that are taken and given back; doubles when it is full."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.pages = torch.empty((0, *shape), dtype=dtype, device=device)
        self._free: list[int] = []

    @property
    def in_use(self) -> int:
        """Pages taken and not given back."""
        return self.pages.shape[0] - len(self._free)

    def take(self, count: int) -> list[int]:
        """Indices of `count` pages of undefined content."""
        while len(self._free) < count:
            self._grow()
        return [self._free.pop() for _ in range(count)]

    def put(self, content: Tensor) -> list[int]:
        """Indices of pages with this content, (count, …)."""
        taken = self.take(len(content))
        try:
            index = to_device(taken, torch.int64, self.pages.device)
            self.pages[index] = content.to(self.pages.device, self.pages.dtype)
        except BaseException:
            self.give_back(taken)  # a device without memory must not lose pages as well
            raise
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        self._free.extend(pages)

    def _grow(self) -> None:
        old = self.pages.shape[0]
        added = max(old, 16)
        self.pages = torch.cat((self.pages, self.pages.new_empty((added, *self.pages.shape[1:]))))
        self._free.extend(range(old + added - 1, old - 1, -1))


@dataclass(slots=True)
class ObjectMemory:
    """Pages of one object: `conditioning` for both directions, the rest one for each.

    Each maps a frame index to a page. With `one_history` both directions read and write the
    same recent frames, as in the reference models.
    """

    one_history: bool
    keep_all: bool
    conditioning: dict[int, tuple[int, int]] = field(default_factory=dict)
    masks: dict[Direction, dict[int, int]] = field(init=False)
    pointers: dict[Direction, dict[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        masks: dict[int, int] = {}
        pointers: dict[int, int] = {}
        self.masks = {1: masks, -1: masks if self.one_history else {}}
        self.pointers = {1: pointers, -1: pointers if self.one_history else {}}

    def put_conditioning(self, frame: int, mask_page: int, pointer_page: int) -> None:
        """In the order of time: what a step reads must not depend on who prompted when."""
        self.conditioning[frame] = (mask_page, pointer_page)
        self.conditioning = dict(sorted(self.conditioning.items()))


class MemoryBank:
    """The memories of all objects of an engine or a session.

    one_history: forward and backward passes share recent frames (reference semantics).
    keep_all: recent frames are never forgotten, so that a pass may start anywhere again;
    otherwise memory is constant in the length of the video.
    """

    def __init__(
        self,
        limits: BankLimits,
        mask_shape: tuple[int, int],
        pointer_size: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        one_history: bool,
        keep_all: bool,
    ) -> None:
        self.limits = limits
        self.one_history = one_history
        self.keep_all = keep_all
        self._masks = PagePool(mask_shape, REMEMBERED_AS, device)
        self._pointers = PagePool((pointer_size,), dtype, device)
        self._objects: dict[int, ObjectMemory] = {}

    @property
    def device(self) -> torch.device:
        return self._masks.pages.device

    @property
    def mask_pages_in_use(self) -> int:
        """Remembered masks of all objects."""
        return self._masks.in_use

    def add_object(self, key: int) -> None:
        """Begin to remember an object; `key` is the caller's, unique in this bank."""
        self._objects[key] = ObjectMemory(self.one_history, self.keep_all)

    def remove_object(self, key: int) -> None:
        """Forget an object, if it is known, and free its pages; others are not touched."""
        memory = self._objects.pop(key, None)
        if memory is None:
            return
        mask_tables = list({id(t): t for t in memory.masks.values()}.values())
        pointer_tables = list({id(t): t for t in memory.pointers.values()}.values())
        masks = [page for table in mask_tables for page in table.values()]
        pointers = [page for table in pointer_tables for page in table.values()]
        for mask_page, pointer_page in memory.conditioning.values():
            masks.append(mask_page)
            pointers.append(pointer_page)
        self._masks.give_back(masks)
        self._pointers.give_back(pointers)

    def is_conditioning(self, key: int, frame_index: int) -> bool:
        """Whether a prompt on this frame is remembered."""
        return frame_index in self._objects[key].conditioning

    def conditioning_frames(self, key: int) -> list[int]:
        """The frames whose prompts are remembered, in time order."""
        return sorted(self._objects[key].conditioning)

    def recall(
        self, key: int, frame_index: int, direction: Direction, num_frames: int | None
    ) -> Recall:
        """What an object reads on a frame.

        num_frames: the video's length where it is known before tracking, else None; it bounds
        how far pointers reach back, as in the reference models.
        """
        memory = self._objects[key]
        selected, spare = select_conditioning(
            list(memory.conditioning), frame_index, self.limits.max_conditioning
        )
        last_row = self.limits.recent_masks
        recall = Recall(
            [memory.conditioning[f][0] for f in selected], [last_row] * len(selected), [], []
        )
        masks = memory.masks[direction]
        for distance in range(self.limits.recent_masks, 0, -1):
            frame = frame_index - direction * distance
            page = masks.get(frame)
            if page is None and frame in spare:
                page = memory.conditioning[frame][0]
            if page is not None:
                recall.mask_pages.append(page)
                recall.time_rows.append(distance - 1)
        for frame, (_, pointer_page) in memory.conditioning.items():
            distance = direction * (frame_index - frame)
            if distance >= 0:
                recall.pointer_pages.append(pointer_page)
                recall.pointer_distances.append(distance)
        pointers = memory.pointers[direction]
        for distance in range(1, self.pointer_span(num_frames)):
            page = pointers.get(frame_index - direction * distance)
            if page is not None:
                recall.pointer_pages.append(page)
                recall.pointer_distances.append(distance)
        return recall

    def pointer_span(self, num_frames: int | None) -> int:
        """How many frames, the present one included, pointers are read from."""
        longest = self.limits.recent_pointers + 1
        return longest if num_frames is None else min(num_frames, longest)

    def read(
        self, recalls: Sequence[Recall], spans: Sequence[int], *, few_shapes: bool = False
    ) -> Readout:
        """Gather the pages of N objects that all read the same number of masks.

        spans: `pointer_span` of each object's video. few_shapes: have places for as many
        pointers as objects with so many masks usually read. One copy of indices to the device,
        no wait for it.
        """
        counts = {len(r.mask_pages) for r in recalls}
        if len(counts) != 1 or 0 in counts:  # fused attention without a key ends the process
            raise ValueError(
                f"objects of one step must read equally many masks, 1 or more; got {sorted(counts)}"
            )
        longest = max(1, *(len(r.pointer_pages) for r in recalls)) if recalls else 1
        if few_shapes:
            usual = self.limits.recent_pointers + len(recalls[0].mask_pages)
            longest = usual if longest <= usual else -(-longest // 16) * 16
        pointer_pages, offsets, valid = [], [], []
        for r, span in zip(recalls, spans, strict=True):
            gap = longest - len(r.pointer_pages)
            pointer_pages.append(r.pointer_pages + [0] * gap)
            # A clip of one frame has no span to divide by; it has no second frame either.
            offsets.append([d / max(span - 1, 1) for d in r.pointer_distances] + [0.0] * gap)
            valid.append([True] * len(r.pointer_pages) + [False] * gap)
        device = self.device
        mask_index = to_device([r.mask_pages for r in recalls], torch.int64, device)
        pointer_index = to_device(pointer_pages, torch.int64, device)
        return Readout(
            masks=self._masks.pages[mask_index],
            time_rows=to_device([r.time_rows for r in recalls], torch.int64, device),
            pointers=self._pointers.pages[pointer_index],
            pointer_offsets=to_device(offsets, torch.float32, device),
            pointer_valid=to_device(valid, torch.bool, device),
        )

    def write(
        self,
        keys: Sequence[int],
        frame_indices: Sequence[int],
        directions: Sequence[Direction],
        masks: Tensor,
        pointers: Tensor,
        conditioning: bool,
    ) -> None:
        """Remember N objects, each on its frame of a pass in its direction.

        masks: (N, L, C_mem); pointers: (N, C). A prompted frame replaces whatever was
        remembered of that frame, in both directions.
        """
        mask_pages = self._masks.put(masks)
        try:
            pointer_pages = self._pointers.put(pointers)
        except BaseException:
            self._masks.give_back(mask_pages)
            raise
        pages = zip(keys, frame_indices, directions, mask_pages, pointer_pages, strict=True)
        for key, frame, direction, mask_page, pointer_page in pages:
            memory = self._objects[key]
            if conditioning:
                self._forget(memory, frame)
                memory.put_conditioning(frame, mask_page, pointer_page)
                continue
            for table, pool, page in (
                (memory.masks[direction], self._masks, mask_page),
                (memory.pointers[direction], self._pointers, pointer_page),
            ):
                if frame in table:
                    pool.give_back([table[frame]])
                table[frame] = page
            if not self.keep_all:
                self._expire(memory, frame, direction)

    def conditioning_page(self, key: int, frame_index: int) -> Page:
        """A copy of what a prompt left of a frame."""
        mask, pointer = self._objects[key].conditioning[frame_index]
        return Page(self._masks.pages[mask].clone(), self._pointers.pages[pointer].clone())

    def put_conditioning_page(self, key: int, frame_index: int, page: Page) -> None:
        """Remember a prompted frame as `conditioning_page` gave it."""
        self.write([key], [frame_index], [1], page.mask[None], page.pointer[None], True)

    def recent_pages(self, key: int, direction: Direction) -> RecentPages:
        """A copy of what a pass left of the frames that its next step may read."""
        memory = self._objects[key]
        masks, pointers = memory.masks[direction], memory.pointers[direction]
        device = self.device
        mask_index = to_device(list(masks.values()), torch.int64, device)
        pointer_index = to_device(list(pointers.values()), torch.int64, device)
        return RecentPages(
            tuple(masks),
            self._masks.pages[mask_index],
            tuple(pointers),
            self._pointers.pages[pointer_index],
        )

    def put_recent_pages(self, key: int, direction: Direction, recent: RecentPages) -> None:
        """Go on from where `recent_pages` was taken; the object's pass must be new."""
        memory = self._objects[key]
        for table, pool, frames, pages in (
            (memory.masks[direction], self._masks, recent.mask_frames, recent.masks),
            (memory.pointers[direction], self._pointers, recent.pointer_frames, recent.pointers),
        ):
            assert not table, "the pass has begun"
            table |= zip(frames, pool.put(pages), strict=True)

    def forget_frame(self, key: int, frame_index: int) -> None:
        """Forget what an object's tracking or prompting left of one frame."""
        self._forget(self._objects[key], frame_index)

    def _forget(self, memory: ObjectMemory, frame: int) -> None:
        if frame in memory.conditioning:
            mask_page, pointer_page = memory.conditioning.pop(frame)
            self._masks.give_back([mask_page])
            self._pointers.give_back([pointer_page])
        for direction in (1, -1):
            if frame in memory.masks[direction]:
                self._masks.give_back([memory.masks[direction].pop(frame)])
            if frame in memory.pointers[direction]:
                self._pointers.give_back([memory.pointers[direction].pop(frame)])

    def _expire(self, memory: ObjectMemory, frame: int, direction: Direction) -> None:
        """Free what no later step of this pass can read."""
        for table, pool, reach in (
            (memory.masks[direction], self._masks, self.limits.recent_masks),
            (memory.pointers[direction], self._pointers, self.limits.recent_pointers),
        ):
            stale = [f for f in table if direction * (frame - f) >= reach]
            pool.give_back([table.pop(f) for f in stale])


def select_conditioning(
    frames: Sequence[int], frame_index: int, cap: int
) -> tuple[list[int], set[int]]:
    """The conditioning frames that a step on frame_index reads, and the others.

    Over the cap (-1: none): the nearest before, the nearest at or after, then the nearest of the
    rest.
    """
    if cap == -1 or len(frames) <= cap:
        return list(frames), set()
    before = [f for f in frames if f < frame_index]
    after = [f for f in frames if f >= frame_index]
    selected = ([max(before)] if before else []) + ([min(after)] if after else [])
    selected = selected[:cap]
    rest = [f for f in frames if f not in selected]
    rest.sort(key=lambda f: abs(f - frame_index))
    selected += rest[: cap - len(selected)]
    return selected, set(frames) - set(selected)


def to_device(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small tensor on the device without waiting for it."""
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
