"""Which frame of a video is shown when, and where decoding may start. Knows no file or decoder."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam2model.video_source import VideoError

NO_PTS = -(2**63)


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Which frame has which timestamp, in presentation order.

    pts: (T,) int64 in the stream's time base, NO_PTS where there is none.
    key_indices: rising; the frames that decoding can start from.
    error: why there are no frames from T on, when that is not the end of the video.
    """

    pts: npt.NDArray[np.int64]
    key_indices: list[int]
    error: VideoError | None = None

    def __len__(self) -> int:
        return len(self.pts)

    def starts(self, index: int) -> list[int]:
        """Where to start decoding for a frame: the nearest two key frames, then the beginning."""
        at = bisect_right(self.key_indices, index)
        near = self.key_indices[max(0, at - 2) : at][::-1]
        return [*(key for key in near if key > 0 and self.pts[key] != NO_PTS), 0]

    def first_key_or(self, begin: int, end: int) -> int:
        """The first key frame of begin … end-1, or begin: where a piece of that span may start."""
        at = bisect_left(self.key_indices, begin)
        key = self.key_indices[at] if at < len(self.key_indices) else end
        return key if key < end else begin

    def frame_with(self, pts: int) -> int | None:
        """The index of a timestamp, if exactly one frame has it."""
        found = np.flatnonzero(self.pts == pts)
        return int(found[0]) if len(found) == 1 else None
