"""The bytes of one video, read at random. Knows nothing of containers, codecs or frames."""

import io
import threading
from pathlib import Path
from typing import BinaryIO, Literal

VideoReason = Literal["undecodable", "no_frames", "truncated", "too_large", "unreadable"]


class VideoError(ValueError):
    """A video that cannot be read; the message says what, where, got and wanted.

    reason: `unreadable` the bytes could not be had, `undecodable` they are damaged or not a video,
    `truncated` they end too early, `no_frames` nothing to show, `too_large` beyond a limit.
    """

    def __init__(self, reason: VideoReason, message: str) -> None:
        super().__init__(reason, message)  # both, so that a copy can be unpickled elsewhere
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class VideoSource:
    """Bytes, a local file or a seekable binary file object as one thing that is read by offset.

    Any number of cursors, in any threads, may read at once: a file object's own position is
    never relied on. A file opened here is closed here; the caller's file object stays open.
    """

    def __init__(self, source: bytes | Path | BinaryIO, name: str) -> None:
        self.name = name
        self._error: OSError | None = None
        self._is_ours = not hasattr(source, "read")
        self._lock = threading.Lock()
        try:
            self._file = _open_file(source)
            self.size_bytes = self._file.seek(0, io.SEEK_END)
        except OSError as error:
            raise self._unreadable(error) from error

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end. VideoError if it cannot."""
        try:
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        except OSError as error:
            self._error = error
            raise self._unreadable(error) from error

    def check(self) -> None:
        """Raise what a demuxer may have swallowed: a read that failed looks like an end to it."""
        if self._error is not None:
            raise self._unreadable(self._error) from self._error

    def cursor(self) -> "SourceCursor":
        """A nameless file at the first byte, for a demuxer."""
        return SourceCursor(self)

    def _unreadable(self, error: OSError) -> VideoError:
        return VideoError("unreadable", f"{self.name}: cannot be read: {error}")

    def close(self) -> None:
        if self._is_ours:
            self._file.close()


class SourceCursor:
    """What PyAV needs of a file: read, seek, tell. Has no name a demuxer could resolve against.

    A read that fails is an end to FFmpeg, whatever PyAV is told: whoever meets an end asks
    `VideoSource.check`.
    """

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._offset = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._source.read_at(self._offset, size)
        except VideoError:
            return b""
        self._offset += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._source.size_bytes}
        self._offset = max(0, base[whence] + offset)
        return self._offset

    def tell(self) -> int:
        return self._offset


def _open_file(source: bytes | Path | BinaryIO) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Path):
        return source.open("rb")
    if isinstance(source, str) or not hasattr(source, "read"):
        raise TypeError(
            f"a video comes as bytes, pathlib.Path or a binary file, not {type(source).__name__}; "
            "a URI is opened by the caller's storage"
        )
    return source
