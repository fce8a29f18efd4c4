"""Features of a video's frames, kept near the frame that a person looks at.

Knows nothing of objects. Three places, nearest first: the device, host memory, and nowhere, which
means to decode and encode the frame again; what is kept changes no mask. The frame farthest from
the one last asked for leaves first, so that a pass through the whole video does not drive out what
the next click will need.
"""

import threading
from bisect import insort
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sam2model.labelling_plan import Frames, SeenFrame
from sam2model.track_step import ImageFeatures
from sam2model.transfers import Parked, park

WORTH_A_SEEK = 16  # frames in a row that are known, to stop decoding and begin again after them


@dataclass(frozen=True, slots=True, eq=False)
class KnownFrame:
    """A frame that need be neither decoded nor encoded; one row of features, here or parked."""

    index: int
    pts_s: float
    features: ImageFeatures | Parked

    @property
    def nbytes(self) -> int:
        return self.features.nbytes

    def features_on(self, device: torch.device) -> ImageFeatures:
        """The features on a device, which does not make this thread wait."""
        if isinstance(self.features, Parked):
            return ImageFeatures(*self.features.on(device))
        return self.features


class _Place:
    """Frames within a budget; whoever is farthest from the focus leaves first."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.nbytes = 0
        self.frames: dict[int, KnownFrame] = {}
        self._order: list[int] = []  # the farthest is the first or the last

    def admit(self, new: KnownFrame, focus: int) -> list[KnownFrame]:
        """Put a frame here; who must leave for it, which may be the frame itself."""
        self.frames[new.index] = new
        insort(self._order, new.index)
        self.nbytes += new.nbytes
        gone = []
        while self.nbytes > self.room_bytes:
            is_last = abs(self._order[-1] - focus) >= abs(self._order[0] - focus)
            leaving = self.frames.pop(self._order.pop(-1 if is_last else 0))
            self.nbytes -= leaving.nbytes
            gone.append(leaving)
        return gone

    def clear(self) -> list[KnownFrame]:
        """Let all go."""
        gone = list(self.frames.values())
        self.frames.clear()
        self._order.clear()
        self.nbytes = 0
        return gone


class FeatureCache:
    """Frames by index within two budgets; any thread may ask."""

    def __init__(self, device_bytes: int, host_bytes: int) -> None:
        self._lock = threading.Lock()
        self._near = _Place(device_bytes)  # on the device
        self._far = _Place(host_bytes)  # in host memory
        self._focus = 0

    def focus(self, frame_index: int) -> None:
        """Keep what lies around this frame."""
        with self._lock:
            self._focus = frame_index

    def get(self, frame_index: int) -> KnownFrame | None:
        """A frame, where it is kept."""
        with self._lock:
            return self._near.frames.get(frame_index) or self._far.frames.get(frame_index)

    def known_in_a_row(self, frame_index: int, step: int, most: int) -> int:
        """How many frames from here on are kept, forward (step 1) or backward (-1), up to most."""
        with self._lock:
            for count in range(most):
                index = frame_index + step * count
                if index not in self._near.frames and index not in self._far.frames:
                    return count
        return most

    def put(self, frame_index: int, pts_s: float, features: ImageFeatures) -> None:
        """Keep a frame if it lies nearer than what must leave for it; features: one row."""
        with self._lock:
            if frame_index in self._near.frames or frame_index in self._far.frames:
                return
            # A row of a batch would keep the whole batch.
            new = KnownFrame(frame_index, pts_s, own_rows(features))
            self._move(self._near.admit(new, self._focus))

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes kept on the device, and in host memory."""
        with self._lock:
            return self._near.nbytes, self._far.nbytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._near.frames) + len(self._far.frames)

    def leave_device(self) -> None:
        """Move everything to host memory, as far as that has room."""
        with self._lock:
            near = self._near.clear()
            self._move(sorted(near, key=lambda frame: abs(frame.index - self._focus)))

    def clear(self) -> None:
        with self._lock:
            self._near.clear()
            self._far.clear()

    def _move(self, frames: list[KnownFrame]) -> None:
        """From the device to host memory, as far as it has room."""
        for frame in frames:
            if frame.nbytes <= self._far.room_bytes:
                known = KnownFrame(frame.index, frame.pts_s, _parked(frame.features))
                self._far.admit(known, self._focus)


class KnownFrames:
    """A video's frames, decoded only where the cache does not know them."""

    def __init__(self, video: Frames, cache: FeatureCache) -> None:
        self._video = video
        self._cache = cache

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[SeenFrame]:
        """Frames start … stop-1, as of a video."""
        index: int | None = start
        while index is not None and (stop is None or index < stop):
            known = self._cache.get(index)
            if known is not None:
                yield known
                index += 1
            else:
                index = yield from self._decoded(self._video.frames(index, stop), 1)

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[SeenFrame]:
        """Frames stop-1 … start, as of a video."""
        if stop is None:  # where it ends, only decoding tells
            yield from self._video.frames_backwards(start, None)
            return
        index: int | None = stop - 1
        while index is not None and index >= start:
            known = self._cache.get(index)
            if known is not None:
                yield known
                index -= 1
            else:
                decoded = self._video.frames_backwards(start, index + 1)
                index = yield from self._decoded(decoded, -1)

    def _decoded(
        self, decoded: Iterator[SeenFrame], step: int
    ) -> Generator[SeenFrame, None, int | None]:
        """Decoded frames up to many known ones; where those begin, None at the video's end.

        A few known frames in between are decoded along, for a new beginning costs more.
        """
        for frame in decoded:
            yield self._cache.get(frame.index) or frame
            after = frame.index + step
            if self._cache.known_in_a_row(after, step, WORTH_A_SEEK) == WORTH_A_SEEK:
                close = getattr(decoded, "close", None)
                if close is not None:
                    close()
                return after
        return None


def own_rows(features: ImageFeatures) -> ImageFeatures:
    """The same features in memory that nobody else holds."""
    return ImageFeatures(*(_own(t) for t in features.tensors))


def _own(tensor: Tensor) -> Tensor:
    is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_whole else tensor.clone()


def _parked(features: ImageFeatures | Parked) -> Parked:
    return features if isinstance(features, Parked) else park(*features.tensors)
