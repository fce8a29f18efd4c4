"""Frames as JPEG, those near the last one asked for already made. Knows nothing of HTTP or Ray.

A page steps from frame to frame, so whoever asks for one gets the next ones made ahead. Encoded
frames are small: some hundreds of them cost less than a few decoded ones.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

RgbArray = npt.NDArray[np.uint8]
Key = tuple[str, int]  # video_id, frame_index
FrameOf = Callable[[str, int], RgbArray]


@dataclass(frozen=True, slots=True)
class FramesConfig:
    """JPEG quality, how many frames are made ahead on either side, bytes of JPEG kept."""

    jpeg_quality: int = 90
    ahead: int = 8
    kept_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}; wanted 1 to 100")
        if self.ahead < 0 or self.kept_bytes < 0:
            raise ValueError(
                f"ahead is {self.ahead}, kept_bytes {self.kept_bytes}; wanted 0 or more"
            )


class FrameShelf:
    """Encoded frames of any videos, the ones used longest ago given up first. Safe among threads.

    frame_of: decodes one; raises what it will for a frame that is not there.
    """

    def __init__(self, frame_of: FrameOf, config: FramesConfig) -> None:
        self._frame_of = frame_of
        self._config = config
        self._lock = threading.Lock()
        self._jpegs: OrderedDict[Key, bytes] = OrderedDict()
        self._size_bytes = 0
        self._newest: dict[str, int] = {}  # video_id → generation of its last wish
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="frames-ahead")

    def jpeg(self, video_id: str, frame_index: int, num_frames: int) -> bytes:
        """One frame; those round it are made meanwhile."""
        data = self._kept(video_id, frame_index)
        if data is None:
            data = self._make(video_id, frame_index)
        self._make_ahead(video_id, frame_index, num_frames)
        return data

    def close(self) -> None:
        self._ahead.shutdown(wait=True, cancel_futures=True)

    def _kept(self, video_id: str, frame_index: int) -> bytes | None:
        with self._lock:
            data = self._jpegs.get((video_id, frame_index))
            if data is not None:
                self._jpegs.move_to_end((video_id, frame_index))
            return data

    def _make(self, video_id: str, frame_index: int) -> bytes:
        data = encode_jpeg(self._frame_of(video_id, frame_index), self._config.jpeg_quality)
        with self._lock:
            if (video_id, frame_index) not in self._jpegs:
                self._jpegs[video_id, frame_index] = data
                self._size_bytes += len(data)
            while self._size_bytes > self._config.kept_bytes and len(self._jpegs) > 1:
                _, oldest = self._jpegs.popitem(last=False)
                self._size_bytes -= len(oldest)
        return data

    def _make_ahead(self, video_id: str, frame_index: int, num_frames: int) -> None:
        """Wish for the frames round this one; a newer wish for the same video replaces it."""
        ahead = self._config.ahead
        near = range(max(frame_index - ahead, 0), min(frame_index + ahead + 1, num_frames))
        with self._lock:
            missing = [k for k in near if (video_id, k) not in self._jpegs]
            if not missing:
                return
            generation = self._newest[video_id] = self._newest.get(video_id, 0) + 1
        # onwards first, in the order that decodes without going back
        missing.sort(key=lambda k: (k < frame_index, k))
        self._ahead.submit(self._make_all, video_id, missing, generation)

    def _make_all(self, video_id: str, frames: list[int], generation: int) -> None:
        """A frame that cannot be had ends it: whoever asks for that one is told why."""
        for frame_index in frames:
            if self._newest.get(video_id) != generation:
                return
            if self._kept(video_id, frame_index) is None:
                self._make(video_id, frame_index)
        with self._lock:
            if self._newest.get(video_id) == generation:  # nobody waits in line behind it
                del self._newest[video_id]


def encode_jpeg(rgb: RgbArray, quality: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(rgb).save(sink, "JPEG", quality=quality)
    return sink.getvalue()
