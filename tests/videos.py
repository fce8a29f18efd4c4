"""Videos made for tests: a moving square, and in every frame its own index in black and white.

The index is written as a strip of 8×2 cells along the top, bit 0 first, row by row, white for 1.
A cell is width/8 × height/12 px, so it survives lossy compression: at least 8 px each way from
64×96 px up. The square moves below the strip.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

RgbArray = npt.NDArray[np.uint8]
CODE_COLUMNS, CODE_ROWS = 8, 2  # 16 bits: frames 0 to 65535
TICKS_PER_S = 1000


def square_box(index: int, height: int = 96, width: int = 128) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) px of the square on a frame, x1 and y1 exclusive; it goes to and fro."""
    side = height // 4
    top = height // 6 + height // 4
    track = width - side
    x = (index * 3) % (2 * track)
    x = x if x < track else 2 * track - x
    return x, top, x + side, top + side


def square_mask(index: int, height: int = 96, width: int = 128) -> npt.NDArray[np.bool_]:
    """(H, W) bool, True on the square."""
    x0, y0, x1, y1 = square_box(index, height, width)
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def moving_square(index: int, height: int = 96, width: int = 128) -> RgbArray:
    """One frame: index strip, a smooth background, a red square."""
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[..., 0] = 60
    rgb[..., 1] = np.linspace(40, 160, width)
    rgb[..., 2] = np.linspace(160, 40, height)[:, None]
    x0, y0, x1, y1 = square_box(index, height, width)
    rgb[y0:y1, x0:x1] = (220, 40, 40)
    cell_height, cell_width = _cell_size(height, width)
    for bit in range(CODE_ROWS * CODE_COLUMNS):
        top, left = bit // CODE_COLUMNS * cell_height, bit % CODE_COLUMNS * cell_width
        rgb[top : top + cell_height, left : left + cell_width] = 255 if index >> bit & 1 else 0
    return rgb


def frame_index_from_pixels(rgb: RgbArray) -> int:
    """The index that a frame, upright and of its own size, carries in its strip."""
    cell_height, cell_width = _cell_size(*rgb.shape[:2])
    index = 0
    for bit in range(CODE_ROWS * CODE_COLUMNS):
        top, left = bit // CODE_COLUMNS * cell_height, bit % CODE_COLUMNS * cell_width
        cell = rgb[top : top + cell_height, left : left + cell_width]
        middle = cell[cell_height // 4 : -cell_height // 4, cell_width // 4 : -cell_width // 4]
        index |= int(middle.mean() > 127) << bit
    return index


def write_moving_square(
    path: Path,
    num_frames: int = 16,
    height: int = 96,
    width: int = 128,
    fps: float = 10,
    *,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 2,
    pts_ms: Sequence[int] | None = None,
    rotation_ccw_deg: int = 0,
    mirrored: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write frames 0 … num_frames-1; the container follows the suffix. Gives the path back.

    gop: frames from one key frame to the next. b_frames: at most that many in a row.
    pts_ms: a time for each frame (variable frame rate); None: index / fps.
    rotation_ccw_deg, mirrored: written into the display matrix; the stored pixels stay as they are.
    options: of the encoder, container_options: of the muxer (both as FFmpeg names them).
    """
    times = [round(i * TICKS_PER_S / fps) for i in range(num_frames)] if pts_ms is None else pts_ms
    fast = {"preset": "ultrafast"} if codec in ("libx264", "libx265") else {}
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(path, "w", options=container_options or {}) as container:
        stream = container.add_stream(
            codec,
            rate=Fraction(fps).limit_denominator(1001),
            options={**fast, **quiet, **(options or {})},
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        if rotation_ccw_deg or mirrored:
            stream.set_display_rotation(rotation_ccw_deg, hflip=mirrored)
        for index, pts in enumerate(times[:num_frames]):
            picture = av.VideoFrame.from_ndarray(moving_square(index, height, width), "rgb24")
            picture.pts, picture.time_base = pts, Fraction(1, TICKS_PER_S)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def _cell_size(height: int, width: int) -> tuple[int, int]:
    return height // 12, width // CODE_COLUMNS
