"""How a stored picture is turned to be shown. Knows display matrices; knows no files or frames."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pictures are turned to be shown: first transposed, then mirrored.

    Source: the display matrix (a, b, u, c, d, v, x, y, w), where a stored point (p, q), y down, is
    shown at (a·p + c·q, b·p + d·q). Any other angle is taken as the nearest quarter turn.
    """

    is_transposed: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, picture: VideoFrame) -> "Orientation":
        """Of a decoded picture: FFmpeg gives each the matrix of its stream."""
        try:
            matrix = picture.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]  # wrong stub
        except KeyError:
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, mirror_x=c < 0, mirror_y=b < 0)
        return cls(False, mirror_x=a < 0, mirror_y=d < 0)

    @property
    def rotation_deg(self) -> int:
        """Clockwise, 0, 90, 180 or 270; of a mirrored video, the turn after mirroring it in x."""
        if self.is_transposed:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, stored: RgbArray) -> RgbArray:
        """(H, W, 3) as shown, contiguous."""
        shown = stored.swapaxes(0, 1) if self.is_transposed else stored
        shown = shown[:, ::-1] if self.mirror_x else shown
        shown = shown[::-1] if self.mirror_y else shown
        return np.ascontiguousarray(shown)
