"""Decoded pictures of one video with their exact index. Knows no RGB, rotation or time in seconds.

Two facts of FFmpeg 8 and PyAV 18 shape this file:
- Decoders run on one thread, because only then is damage noticed, and noticed the same every time.
  With slice threads h264 hid it (5 of 60 damaged files noticed, against 45). With frame threads the
  mark on a damaged picture may come too late to be seen, and PyAV swallows an error on the last
  packets, so that frames are missing at the end. Work on several videos to use several cores.
- A seek may land elsewhere than asked, and the first pictures after it may be unusable. So what
  comes is compared with a table of timestamps, and an earlier start is tried where it differs.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn, TypeAlias

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sam2model.video_frame_table import NO_PTS, FrameTable
from sam2model.video_source import VideoError, VideoReason, VideoSource
from sam2model.video_structure import find_fault

# Read from their own bytes alone, unlike playlists (concat, HLS, DASH, SDP), which name files.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg"),
    *("flv", "ogg", "asf", "h264", "hevc"),
)
# Where a packet is a picture, unless interlaced. Elsewhere it may hold one that is never shown.
ONE_PICTURE_PER_PACKET = {"h264", "hevc", "av1"}
WHOLE_PACKETS = {"mov", "matroska"}  # packets as the encoder made them, each with a timestamp
PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive
READ_BYTES = 1 << 18
WHY = {"truncated": "the file is cut short", "undecodable": "the container is damaged"}
VideoPacket: TypeAlias = "Packet[VideoStream]"  # generic for type checkers only


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What is refused, by the header before any work, by count while decoding; None: no limit."""

    max_bytes: int | None = 16 << 30
    max_pixels: int | None = 7680 * 4320  # of one frame: 8K
    max_frames: int | None = 2_000_000
    max_seconds: float | None = 24 * 3600.0


class _SeekMissed(Exception):
    """Decoding from a key frame did not give what the table says; start earlier."""


class VideoDecoder:
    """One open container and its decoder. Not thread-safe; each thread opens its own.

    table: given by the owner once there is one; made here by a pass from the first frame to the
    end, or to where the video is damaged.
    """

    def __init__(
        self,
        source: VideoSource,
        limits: VideoLimits,
        table: FrameTable | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """size: (width, height) before rotation that every frame must have; None: as the first."""
        self.table = table
        self.size = size
        self._source = source
        self._limits = limits
        self._index = 0  # of the frame that is due, for messages
        self._ahead: Iterator[tuple[int, VideoFrame]] = iter(())
        self._next_ahead = -1
        self._open()

    def frames_from(self, index: int) -> Iterator[tuple[int, VideoFrame]]:
        """(index, picture) from `index` to the end; nothing where the video has fewer frames.

        Raises VideoError where it cannot be decoded on.
        """
        if self.table is not None and index >= len(self.table):
            if self.table.error is not None:
                raise VideoError(*self.table.error.args)
            return
        for start in self.table.starts(index) if self.table is not None else [0]:
            run = self._run(start, index)
            try:
                first = next((item for item in run if item[0] == index), None)
            except (VideoError, _SeekMissed):
                if start == 0:
                    raise
                continue
            if first is not None:
                yield first
                yield from run
            return

    def frame_at(self, index: int) -> VideoFrame | None:
        """One picture, None past the end; decodes on from the last one where that is nearer.

        Needs the table.
        """
        assert self.table is not None
        if not self.table.starts(index)[0] <= self._next_ahead <= index:
            self._ahead = self.frames_from(index)
        self._next_ahead = -1
        for found, picture in self._ahead:
            if found == index:
                self._next_ahead = index + 1
                return picture
        return None

    def scan_packets(self, first_pts: int | None) -> FrameTable | None:
        """The table as the packets tell it, without decoding; None where they cannot be trusted.

        first_pts: of the first picture that decoding gave. Reads the whole file once.
        """
        if not self._packets_owe_pictures:
            return None
        pts, key_pts = array("q"), array("q")
        for packet in self._rewind():
            if packet.size > 0 and packet.pts is None:
                return None
            if packet.pts is not None and not packet.is_discard:
                pts.append(packet.pts)
                if packet.is_keyframe:
                    key_pts.append(packet.pts)
        in_order = np.sort(np.frombuffer(pts, np.int64))
        # Another first packet: one that only its absent forerunners explain, as are more after it.
        if len(pts) == 0 or in_order[0] != first_pts or self._fault():
            return None
        keys = np.searchsorted(in_order, np.sort(np.frombuffer(key_pts, np.int64)))
        return FrameTable(in_order, keys.tolist())

    @property
    def duration_s(self) -> float | None:
        """As the header says: of the stream, or else of the whole file."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        whole = self._container.duration
        return whole / 1e6 if whole else None

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
        if self._limits.max_pixels is not None:
            options["max_pixels"] = str(self._limits.max_pixels)
        try:
            self._container: InputContainer = av.open(
                self._source.cursor(),
                mode="r",
                options=options,
                metadata_errors="replace",
                buffer_size=READ_BYTES,
            )
        except av.FFmpegError as error:
            self._refuse("undecodable", f"cannot be opened: {error.strerror}", error)
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            self._refuse("no_frames", "holds no video")
        if stream.codec_context is None:
            self._refuse("undecodable", "its codec is not supported")
        for other in self._container.streams:
            if other is not stream:
                other.discard = Discard.all
        self.stream = stream
        stream.codec_context.options = {k: v for k, v in options.items() if k == "max_pixels"}
        stream.thread_type, stream.thread_count = ThreadType.NONE, 1
        self._is_used = False

    def _refuse(self, reason: VideoReason, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise on opening; unreadable bytes and a faulty container outweigh the reason given."""
        self._source.check()
        if fault := find_fault(self._source, lambda: None):
            reason, what = fault, f"cannot be opened: {WHY[fault]}"
        raise VideoError(reason, f"{self._source.name}: {what}") from cause

    @property
    def _packets_owe_pictures(self) -> bool:
        """Whether there must be exactly one picture for each packet that is to be shown."""
        context = self.stream.codec_context
        return (
            context.codec.canonical_name in ONE_PICTURE_PER_PACKET
            and bool(WHOLE_PACKETS & set(self._container.format.name.split(",")))
            and context.field_order in PROGRESSIVE
        )

    def _rewind(self) -> Iterator[VideoPacket]:
        """All packets, from the first. Opens anew: not every container can seek to its start."""
        if self._is_used:
            self._container.close()
            self._open()
        self._is_used = True
        return self._demux()

    def _seek(self, key: int, index: int) -> tuple[int, Iterator[VideoPacket]]:
        """The key frame landed on, at best `key` and at most `index`, and packets from it on."""
        assert self.table is not None
        self._is_used = True
        try:
            self._container.seek(int(self.table.pts[key]), stream=self.stream)
        except av.FFmpegError as error:
            raise _SeekMissed from error
        packets = self._demux()
        first = next((packet for packet in packets if packet.is_keyframe), None)
        landed = None if first is None or first.pts is None else self.table.frame_with(first.pts)
        if first is None or landed is None or landed > index:
            raise _SeekMissed
        return landed, chain([first], packets)

    def _demux(self) -> Iterator[VideoPacket]:
        """Packets, then an empty one that makes the decoder give what it holds back."""
        try:
            for packet in self._container.demux(self.stream):
                is_last = packet.size == 0 and packet.dts is None and packet.pts is None
                # An empty one before means "show the last picture again"; decoders would end there.
                if packet.size > 0 or is_last:
                    yield packet
                if is_last:
                    return  # PyAV goes on to streams it found on the way, and stumbles over them
        except av.FFmpegError as error:
            self._fail(f"cannot be read: {error.strerror}", error)

    def _run(self, start: int, index: int) -> Iterator[tuple[int, VideoFrame]]:
        """(index, picture) from the first frame or a key frame on, each as the table has it."""
        table = self.table
        sought = start > 0
        self._index, packets = self._seek(start, index) if sought else (0, self._rewind())
        first_pts = int(table.pts[self._index]) if table is not None and sought else NO_PTS
        pts, key_indices = array("q"), array("q")
        try:
            for picture in self._decode(packets):
                at = NO_PTS if picture.pts is None else picture.pts
                if at < first_pts:
                    continue  # shown before the key frame it needs was: belongs to the last group
                if table is None:
                    pts.append(at)
                    key_indices.extend([self._index] if picture.key_frame else [])
                elif self._index >= len(table) or at != table.pts[self._index]:
                    if sought and self._index <= index:
                        raise _SeekMissed
                    self._fail("has another time than its packet")
                self._check_limits(picture, int(pts[0] if table is None else table.pts[0]))
                yield self._index, picture
                self._index += 1
        except VideoError as error:
            if table is None:
                self.table = FrameTable(np.array(pts, np.int64), key_indices.tolist(), error)
            raise
        if table is None:
            self.table = FrameTable(np.array(pts, np.int64), key_indices.tolist())

    def _decode(self, packets: Iterator[VideoPacket]) -> Iterator[VideoFrame]:
        """Pictures in presentation order; any sign of damage is an error.

        Nothing is given that a missing packet might have to precede: not the pictures held back
        for reordering when the file is cut short.
        """
        owed: Counter[int | None] = Counter()
        first_pts: int | None = None
        for packet in packets:
            if packet.size == 0:
                self._check_whole()
            if packet.is_corrupt:
                self._fail("is damaged in the file")
            if packet.size > 0 and not packet.is_discard:
                owed[packet.pts] += 1
            try:
                pictures = self.stream.decode(packet)
            except av.FFmpegError as error:
                self._fail(f"failed to decode: {error.strerror}", error)
            for picture in pictures:
                if picture.is_corrupt:
                    self._fail("failed to decode: damaged picture")
                first_pts = picture.pts if first_pts is None else first_pts
                owed[picture.pts] -= 1
                if not owed[picture.pts]:
                    del owed[picture.pts]
                yield picture
        # Pictures before the first that could be decoded are not owed: their group began earlier.
        lost = [pts for pts in owed if pts is None or first_pts is None or pts >= first_pts]
        if lost and self._packets_owe_pictures:
            self._fail(f"is the end, but {len(lost)} packets gave no picture")

    def _check_limits(self, picture: VideoFrame, first_pts: int) -> None:
        size = (picture.width, picture.height)
        self.size = self.size or size
        if size != self.size:
            self._fail("is {}×{} px where the first is {}×{}".format(*size, *self.size))
        limits, time_base = self._limits, self.stream.time_base
        if limits.max_frames is not None and self._index >= limits.max_frames:
            self._fail(f"is beyond the limit of {limits.max_frames} frames", reason="too_large")
        if limits.max_seconds is None or time_base is None:
            return
        if picture.pts is None or first_pts == NO_PTS:
            return
        if (picture.pts - first_pts) * time_base > limits.max_seconds:
            self._fail(f"is beyond the limit of {limits.max_seconds} s", reason="too_large")

    def _check_whole(self) -> None:
        """Raise if what the demuxer took for the end is not the end of the file as written."""
        self._source.check()
        if fault := self._fault():
            self._fail(f"is not to be had: {WHY[fault]}")

    def _fault(self) -> VideoReason | None:
        def last_sample_end() -> int | None:
            ends = (entry.pos + entry.size for entry in self.stream.index_entries)
            return max(ends, default=None)

        return find_fault(self._source, last_sample_end)

    def _fail(
        self, what: str, cause: Exception | None = None, reason: VideoReason | None = None
    ) -> NoReturn:
        """Raise for the frame that is due: bytes that cannot be had, a cut file, else damage."""
        self._source.check()
        reason = reason or self._fault() or "undecodable"
        count = f" of {self.stream.frames} (header)" if self.stream.frames else ""
        message = f"{self._source.name}: frame {self._index}{count} {what}"
        raise VideoError(reason, message) from cause
