"""Write frames as a video that browsers play. Knows nothing of where the frames come from."""

import os
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

RgbArray = npt.NDArray[np.uint8]
CODEC_OF_SUFFIX = {".mp4": "libx264", ".webm": "libvpx-vp9"}
# Visually close to lossless for overlays; the two scales differ.
CRF_OF_CODEC = {"libx264": 18, "libvpx-vp9": 30}
BT709 = 1  # AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic agree on it


def write_video(
    path: Path,
    frames: Iterable[RgbArray],
    fps: float | Fraction,
    *,
    codec: str | None = None,
    crf: int | None = None,
) -> int:
    """Write frames, (H, W, 3) uint8 RGB all of one size, to an .mp4 or .webm; how many it wrote.

    codec: an FFmpeg encoder; None: H.264 in MP4, VP9 in WebM. crf: its quality, lower is better.
    Pictures are yuv420p, so an odd width or height gets its last column or row twice.
    The file appears under its name when it is complete; after an error there is none.
    Raises ValueError for another suffix, no frames, or frames that differ in size.
    """
    if path.suffix not in CODEC_OF_SUFFIX:
        raise ValueError(f"{path}: suffix {path.suffix!r}; wanted {' or '.join(CODEC_OF_SUFFIX)}")
    codec = codec or CODEC_OF_SUFFIX[path.suffix]
    crf = CRF_OF_CODEC.get(codec) if crf is None else crf
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        # faststart: the index first, so that a page can begin to play before it has all
        flags = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
        with av.open(unfinished, "w", options=flags) as container:
            stream = _add_stream(container, codec, crf, first.shape, fps)
            num_frames = _encode(path, container, stream, chain([first], iterator), first.shape)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return num_frames


def _add_stream(
    container: OutputContainer,
    codec: str,
    crf: int | None,
    shape: tuple[int, ...],
    fps: float | Fraction,
) -> VideoStream:
    rate = Fraction(fps).limit_denominator(1001)
    options = {} if crf is None else {"crf": str(crf)}
    if codec == "libvpx-vp9":
        options |= {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"}
    stream = container.add_stream(codec, rate=rate, options=options)
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    context.colorspace = context.color_primaries = context.color_trc = BT709
    return stream


def _encode(
    path: Path,
    container: OutputContainer,
    stream: VideoStream,
    frames: Iterable[RgbArray],
    shape: tuple[int, ...],
) -> int:
    num_frames = 0
    for rgb in frames:
        if rgb.shape != shape or rgb.dtype != np.uint8:
            raise ValueError(
                f"{path}: frame {num_frames} is {rgb.dtype} {rgb.shape}; wanted uint8 {shape}"
            )
        even = np.pad(rgb, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=1
        )
        picture.pts, picture.time_base = num_frames, stream.codec_context.time_base
        container.mux(stream.encode(picture))
        num_frames += 1
    container.mux(stream.encode())
    return num_frames
