"""Frames of one video: exact index, time, RGB, turned as shown. Knows no model, prompt or storage.

Frames are counted in presentation order from 0, and the count is what decoding finds, never what
the header says. Input is bytes, a local path or a seekable binary file; a URI is somebody else's.

Damage: frames are given up to where it is noticed, then VideoError is raised; a loop that ends
without one has seen the whole video. Frames given before stay given, but the last few may show the
damage already: pictures are not stored in the order they are shown. A header that names a wrong
count is no damage. What a codec cannot notice (none has checksums) is not found: of 60 files with
1 to 200 bytes of pictures changed, AV1 noticed 60, H.264 45 to 49, HEVC 3 and VP9 none.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np
from av.video.frame import VideoFrame

from sam2model.prefetch import PrefetchedFrames
from sam2model.video_decoder import VideoDecoder, VideoLimits
from sam2model.video_frame_table import FrameTable
from sam2model.video_orientation import Orientation, RgbArray
from sam2model.video_source import VideoError, VideoSource
from sam2model.video_writer import write_video

__all__ = [
    "Frame",
    "PrefetchedFrames",
    "Video",
    "VideoError",
    "VideoInfo",
    "VideoLimits",
    "write_video",
]

# Decoded pictures kept to go backwards: 97 of 1280×720, 43 of 1920×1080, 10 of 3840×2160. A group
# of pictures longer than that is decoded again for every such piece of it.
BACKWARDS_BYTES = 128 << 20
ASSUMED_FPS = 25.0  # what FFmpeg takes for streams that do not say


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known on opening: of the first frame, and, where the names say so, of the header.

    width, height: px after rotation. rotation_deg: clockwise turn applied, 0, 90, 180 or 270.
    fps, duration_s, num_frames_header: as the file claims; None where it claims nothing.
    """

    width: int
    height: int
    rotation_deg: int
    fps: float | None
    duration_s: float | None
    num_frames_header: int | None
    codec: str


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame. rgb: (H, W, 3) uint8, contiguous, turned as shown, nobody else's memory.

    pts_s: seconds on the video's own clock; index / fps where the file has no times.
    """

    index: int
    pts_s: float
    rgb: RgbArray


class Video:
    """A video to read in any order, in constant memory.

    Iterators have a decoder each and may run in other threads than the one that made them, while
    the video is open. Raises VideoError on opening what is no video, has no frame, or exceeds a
    limit by its header.
    """

    def __init__(
        self,
        source: bytes | Path | BinaryIO,
        *,
        name: str,
        limits: VideoLimits = VideoLimits(),  # noqa: B008 (frozen)
    ) -> None:
        """name: for messages. The caller keeps a file object open, and closes it."""
        self.name = name
        self._limits = limits
        self._lock = threading.RLock()
        self._table: FrameTable | None = None
        self._packets_were_scanned = False
        self._at_random: VideoDecoder | None = None
        # The first pass goes on from what opening decoded.
        self._opened: tuple[VideoDecoder, Iterator[tuple[int, VideoFrame]]] | None = None
        self._num_frames_decoded: int | None = None
        self._source = VideoSource(source, name)
        try:
            self._open()
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def info(self) -> VideoInfo:
        return self._info

    @property
    def num_frames_decoded(self) -> int | None:
        """How many frames there are, once some pass has decoded up to the end without an error."""
        return self._num_frames_decoded

    def count_frames(self) -> int:
        """How many frames there are, found without a pass of one's own.

        Reads all packets where they tell (H.264, HEVC, AV1 in MP4 or Matroska), else decodes all.
        Raises VideoError for a damaged video.
        """
        table = self._known_table()
        if table.error is not None:
            raise VideoError(*table.error.args)
        return len(table)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Frames start … stop-1, fewer where the video ends before; stop None: to its end."""
        _check_range(start, stop)
        return self._forwards(start, stop)

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Frames stop-1 … start, from the last one where the video ends before stop.

        Decodes each group of pictures forwards, in pieces of BACKWARDS_BYTES. Of a video damaged
        before `stop` nothing is given.
        """
        _check_range(start, stop)
        return self._backwards(start, stop)

    def frame(self, index: int) -> Frame:
        """One frame. Cheap for the next few after the last one asked for. IndexError past the end.

        Any thread may ask; one is served at a time.
        """
        _check_range(index, None)
        with self._lock:
            table = self._known_table()
            picture = self._random_decoder().frame_at(index)
        if picture is None:
            raise IndexError(f"{self.name}: frame {index}; it has frames 0 to {len(table) - 1}")
        return self._to_frame(index, picture)

    def close(self) -> None:
        """Let go of everything. A file object that was passed in stays open."""
        with self._lock:
            for decoder in (self._opened[0] if self._opened else None, self._at_random):
                if decoder is not None:
                    decoder.close()
            self._opened = self._at_random = None
        self._source.close()

    def _open(self) -> None:
        limits = self._limits
        self._check_header("bytes", self._source.size_bytes, limits.max_bytes)
        if self._source.size_bytes == 0:
            raise VideoError("no_frames", f"{self.name}: empty, 0 bytes")
        decoder = VideoDecoder(self._source, limits)
        stream = decoder.stream
        duration_s = decoder.duration_s
        self._check_header("pixels", stream.width * stream.height, limits.max_pixels)
        self._check_header("frames", stream.frames, limits.max_frames)
        self._check_header("seconds", duration_s or 0, limits.max_seconds)
        pictures = decoder.frames_from(0)
        first = next(pictures, None)
        if first is None:
            raise VideoError("no_frames", f"{self.name}: there is no frame in its video stream")
        self._opened = decoder, chain([first], pictures)
        picture = first[1]
        rate = stream.average_rate or stream.guessed_rate
        self._first_pts = picture.pts
        self._size = (picture.width, picture.height)
        self._picture_bytes = sum(plane.buffer_size for plane in picture.planes)
        self._time_base = stream.time_base
        self._orientation = Orientation.of(picture)
        width, height = self._size[::-1] if self._orientation.is_transposed else self._size
        self._info = VideoInfo(
            width=width,
            height=height,
            rotation_deg=self._orientation.rotation_deg,
            fps=float(rate) if rate else None,
            duration_s=duration_s,
            num_frames_header=stream.frames or None,
            codec=stream.codec_context.codec.canonical_name,
        )

    def _check_header(self, what: str, got: float, limit: float | None) -> None:
        if limit is not None and got > limit:
            raise VideoError(
                "too_large", f"{self.name}: {got} {what} (header); the limit is {limit}"
            )

    def _forwards(self, start: int, stop: int | None) -> Iterator[Frame]:
        if stop is not None and start >= stop:
            return
        decoder, pictures = self._start_pass(start)
        with closing(decoder):
            index = -1
            try:
                for index, picture in pictures:
                    yield self._to_frame(index, picture)
                    if index + 1 == stop:
                        return
            finally:
                self._learn(decoder.table)
            if index >= 0:
                self._num_frames_decoded = index + 1

    def _start_pass(self, start: int) -> tuple[VideoDecoder, Iterator[tuple[int, VideoFrame]]]:
        with self._lock:
            opened = self._opened
            if start == 0 and opened is not None:
                self._opened = None
                return opened
            if start > 0:
                self._scan_packets()
            decoder = self._new_decoder()
        return decoder, decoder.frames_from(start)

    def _backwards(self, start: int, stop: int | None) -> Iterator[Frame]:
        table = self._known_table()
        if table.error is not None and (stop is None or stop > len(table)):
            raise VideoError(*table.error.args)
        end = len(table) if stop is None else min(stop, len(table))
        room = max(1, BACKWARDS_BYTES // self._picture_bytes)
        with closing(self._new_decoder()) as decoder:
            while end > start:
                begin = table.first_key_or(max(start, end - room), end)
                pictures = list(islice(decoder.frames_from(begin), end - begin))
                while pictures:
                    yield self._to_frame(*pictures.pop())
                end = begin

    def _known_table(self) -> FrameTable:
        """The table of all frames: from the packets where they tell, else by decoding all."""
        with self._lock:
            self._scan_packets()
            if self._table is None:
                decoder = self._random_decoder()
                with suppress(VideoError):  # it is kept in the table
                    deque(decoder.frames_from(0), maxlen=0)
                self._table = decoder.table
            assert self._table is not None
            self._random_decoder().table = self._table
            return self._table

    def _scan_packets(self) -> None:
        """Have the table if packets suffice for it; tried once."""
        if self._table is None and not self._packets_were_scanned:
            self._packets_were_scanned = True
            self._learn(self._random_decoder().scan_packets(self._first_pts))

    def _learn(self, table: FrameTable | None) -> None:
        with self._lock:
            self._table = table if self._table is None else self._table

    def _random_decoder(self) -> VideoDecoder:
        if self._at_random is None:
            self._at_random = self._new_decoder()
        return self._at_random

    def _new_decoder(self) -> VideoDecoder:
        return VideoDecoder(self._source, self._limits, self._table, self._size)

    def _to_frame(self, index: int, picture: VideoFrame) -> Frame:
        try:
            stored = picture.to_ndarray(format="rgb24", threads=1)
        except av.FFmpegError as error:
            raise VideoError(
                "undecodable",
                f"{self.name}: frame {index} ({picture.format.name}) cannot be made RGB: "
                f"{error.strerror}",
            ) from error
        if picture.pts is None or self._time_base is None:
            pts_s = index / (self._info.fps or ASSUMED_FPS)
        else:
            pts_s = float(picture.pts * self._time_base)
        return Frame(index, pts_s, self._orientation.apply(stored.astype(np.uint8, copy=False)))


def _check_range(start: int, stop: int | None) -> None:
    if start < 0 or (stop is not None and stop < 0):
        raise ValueError(f"frames {start}:{stop}; they are counted from 0, never from the end")
