"""Where the videos of an annotated dataset lie. Knows nothing of prompts or a manifest's columns.

Many datasets come as folders of JPEG frames. Jobs read video files only, so such a folder is
encoded once, on request, near-lossless, at its size and in its order.
"""

import logging
import os.path
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from workflows.manifest import ManifestError
from workflows.storage import Storage
from workflows.uris import is_local, join_uri, local_path, scheme_of

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True, slots=True)
class FoundVideo:
    """A video file, and which of its frames has which number in the dataset's own naming.

    numbers: of the frame files it was encoded from, rising; None where numbers are indices.
    """

    uri: str
    numbers: tuple[int, ...] | None = None

    def frame_index(self, number: int) -> int:
        """Raises ManifestError if no frame has that number."""
        if self.numbers is None:
            return number
        index = bisect_left(self.numbers, number)
        if index == len(self.numbers) or self.numbers[index] != number:
            raise ManifestError(f"{self.uri}: no frame is named {number}; it has {self.numbers}")
        return index


@dataclass(frozen=True, slots=True)
class EncodeFrames:
    """How folders of frames become videos.

    crf: x264's, lower is better. At 10, JPEG frames of a 960×540 video take half of their bytes
    and come back at 42.6 dB, a mean 1.5 levels of 255 off; the change to 4:2:0 colours alone, at
    crf 0, leaves 45.0 dB and 1.2 levels.
    """

    folder: Path
    crf: int = 10
    fps: int = 24  # DAVIS, MOSE and SA-V; a name for the frames' times only


@dataclass(frozen=True, slots=True)
class VideoFiles:
    """Finds VIDEO.mp4 (or another suffix) under a root, or encodes the folder VIDEO of frames.

    root: folder or URI of video files; relative video URIs of tables are resolved against it.
    frames_root: local folder with a folder of frames a video, if the dataset has one.
    """

    root: str
    storage: Storage
    frames_root: Path | None = None
    encode: EncodeFrames | None = None

    def resolve(self, uri: str) -> str:
        """An absolute URI: what a worker elsewhere can open."""
        if scheme_of(uri) != "file" or "://" in uri or os.path.isabs(uri):
            return uri
        return self._absolute(join_uri(self.root, uri))

    def find(self, video_id: str) -> FoundVideo:
        """Raises ManifestError naming the places that were tried and the option that helps."""
        for suffix in VIDEO_SUFFIXES:
            uri = self._absolute(join_uri(self.root, video_id + suffix))
            if self.storage.exists(uri):
                return FoundVideo(uri)
        folder = self.frames_root / video_id if self.frames_root is not None else None
        if folder is None or not folder.is_dir():
            names = ", ".join(video_id + suffix for suffix in VIDEO_SUFFIXES)
            raise ManifestError(
                f"{video_id}: no video in {self.root}; wanted one of {names}, "
                "or another --videos-root"
            )
        frames = _frame_files(folder)
        if self.encode is None:
            raise ManifestError(
                f"{video_id}: {folder} holds {len(frames)} frames, and videos are files; wanted "
                f"--encode-frames DIR to encode them, or --videos-root with {video_id}.mp4"
            )
        path = _encoded(video_id, list(frames.values()), self.encode)
        return FoundVideo(str(path), tuple(frames))

    def _absolute(self, uri: str) -> str:
        return str(local_path(uri)) if is_local(uri) and "://" not in uri else uri


def _frame_files(folder: Path) -> dict[int, Path]:
    """Number → file, in order of numbers. Raises ManifestError for a name without one."""
    files = {}
    for path in folder.iterdir():
        if path.suffix.lower() in FRAME_SUFFIXES:
            if not path.stem.isascii() or not path.stem.isdigit():
                raise ManifestError(f"{path}: wanted a number as name, such as 00005{path.suffix}")
            if int(path.stem) in files:
                raise ManifestError(f"{path}: a second frame {int(path.stem)} in {folder}")
            files[int(path.stem)] = path
    if not files:
        raise ManifestError(f"{folder}: no frames; wanted files such as 00005.jpg")
    return dict(sorted(files.items()))


def _encoded(video_id: str, frames: list[Path], encode: EncodeFrames) -> Path:
    """The video of these frames, encoded unless it is there: a finished one has its final name."""
    from sam2model.video_writer import write_video

    path = encode.folder / f"{video_id}.mp4"
    if path.exists():
        log.info("%s: %s is there already, not encoded again", video_id, path)
        return path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, _read_frames(frames), encode.fps, crf=encode.crf)
    log.info("%s: %d frames encoded as %s", video_id, len(frames), path)
    return path.absolute()


def _read_frames(paths: list[Path]) -> Iterator[npt.NDArray[np.uint8]]:
    first: tuple[int, int] | None = None
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read as an image: {error}") from error
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            raise ManifestError(
                f"{path}: {height}×{width} px (rows × columns); wanted even numbers, for "
                "H.264 holds no others and a padded video would not fit its masks"
            )
        first = first or (height, width)
        if (height, width) != first:
            raise ManifestError(
                f"{path}: {height}×{width} px (rows × columns); wanted {first[0]}×{first[1]}, "
                "the size of the first frame"
            )
        yield pixels
