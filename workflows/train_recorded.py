"""Clips of real videos with masks: a dataset's labels, DAVIS, MOSE or SA-V folders.

Knows nothing of networks or prompts. Of a video only the frames that have masks are used, in
their order; a clip is some of them that follow one another.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sam2model import rle
from sam2model.video import Video
from workflows.labelled_videos import Selection, VideoReader, select_videos
from workflows.mask_sources import (
    MaskSource,
    MaskSourceError,
    PngFolder,
    Rle,
    SavJson,
    VideoMasks,
    masks_from_rows,
)
from workflows.query import Dataset
from workflows.rows import Review
from workflows.storage import Storage
from workflows.train_scenes import FIRST_STILL, Clip
from workflows.video_files import EncodeFrames, VideoFiles


class TrainingDataError(ValueError):
    """Nothing to learn from; the message says where, got and wanted."""


@dataclass(frozen=True, slots=True)
class RecordedVideo:
    """A video and how to read its masks; frame_of turns a mask's number into a frame's index.

    state: equal while the masks are the same.
    """

    video_id: str
    state: str
    uri: str
    masks: Callable[[], VideoMasks]
    frame_of: Callable[[int], int]


class RecordedClips:
    """Clips of videos, each video about as often as any other.

    Clip i is always the same. size: pixels a side that frames are squeezed to, as the model does.
    """

    def __init__(
        self,
        videos: list[RecordedVideo],
        storage: Storage,
        count: int,
        num_frames: int,
        size: int,
        seed: int,
    ) -> None:
        """Raises TrainingDataError where no video is left."""
        if not videos:
            raise TrainingDataError("no labelled video to learn from; wanted at least one")
        self._videos, self._storage = videos, storage
        self._count, self._num_frames, self._size, self._seed = count, num_frames, size, seed

    @property
    def name(self) -> str:
        """Holds a hash of which videos there are and of the state of their masks."""
        states = json.dumps([(v.uri, v.state) for v in self._videos])
        digest = hashlib.sha256(states.encode()).hexdigest()[:16]
        return f"recorded-{digest}-{self._seed}-{self._count}-{self._num_frames}-{self._size}"

    def __len__(self) -> int:
        return self._count

    def clip(self, index: int) -> Clip:
        """Raises TrainingDataError if a video has fewer frames with masks than a clip."""
        rng = np.random.default_rng([self._seed, index])
        video = self._videos[index % len(self._videos)]
        masks = video.masks()
        numbers = sorted({number for frames in masks.values() for number in frames})
        if len(numbers) < self._num_frames:
            raise TrainingDataError(
                f"{video.video_id}: {len(numbers)} frames have masks; wanted at least "
                f"{self._num_frames} (data.frames)"
            )
        start = int(rng.integers(len(numbers) - self._num_frames + 1))
        chosen = numbers[start : start + self._num_frames]
        labels = np.stack([self._labels(masks, number) for number in chosen])
        wanted = [video.frame_of(number) for number in chosen]
        with self._storage.open_video(video.uri) as source, Video(source, name=video.uri) as opened:
            length = opened.count_frames()
            if max(wanted) >= length:
                past = next(i for i in wanted if i >= length)
                raise TrainingDataError(
                    f"{video.video_id}: a mask for frame {past}; it has frames 0 to {length - 1}"
                )
            frames = np.stack([self._squeezed(opened.frame(i).rgb) for i in wanted])
        return Clip(frames, labels, tuple(float(number) for number in chosen))

    def _squeezed(self, rgb: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None]
        size = (self._size, self._size)
        resized = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()

    def _labels(self, masks: VideoMasks, number: int) -> np.ndarray:
        """Objects numbered from 1 in the order of their ids; the lowest has a shared pixel."""
        labels = np.zeros((self._size, self._size), dtype=np.uint8)
        for place, (_, frames) in reversed(list(enumerate(sorted(masks.items()), 1))):
            if number in frames and place < FIRST_STILL:
                labels[self._mask(frames[number])] = place
        return labels

    def _mask(self, mask: Rle) -> np.ndarray:
        pixels = torch.from_numpy(
            np.ascontiguousarray(rle.decode(mask.counts, mask.height, mask.width))
        )
        size = (self._size, self._size)
        resized = F.interpolate(
            pixels[None, None].float(), size=size, mode="bilinear", antialias=True
        )
        return (resized[0, 0] >= 0.5).numpy()


def videos_of_dataset(uri: str, storage: Storage, reviews: tuple[str, ...]) -> list[RecordedVideo]:
    """The videos of a dataset with an object whose track was judged so."""
    dataset = Dataset(uri, storage)
    selection = Selection(reviews=tuple(Review(review) for review in reviews))
    videos: list[RecordedVideo] = []
    for wanted in select_videos(dataset, selection):
        video = VideoReader(dataset).read(wanted)

        def masks(video: object = video.masks, video_id: str = wanted.video_id) -> VideoMasks:
            return masks_from_rows(video.to_pylist())[video_id]  # type: ignore[attr-defined]

        videos.append(RecordedVideo(wanted.video_id, wanted.state, video.video_uri, masks, _same))
    if not videos:
        raise TrainingDataError(f"{uri}: no object is {' or '.join(reviews)}; wanted some")
    return videos


def videos_of_folder(
    annotations: Path, videos_root: str, storage: Storage, encoded: Path
) -> list[RecordedVideo]:
    """The videos of an annotated folder: PNGs of DAVIS, MOSE and SA-V, or SA-V's JSON."""
    masks: MaskSource = _opened(annotations)
    frames = Path(videos_root) if "://" not in videos_root else None
    files = VideoFiles(videos_root, storage, frames, EncodeFrames(encoded))
    state = _newest_change(annotations)
    videos = []
    for video_id in masks:
        found = files.find(video_id)

        def read(source: Mapping[str, VideoMasks] = masks, video_id: str = video_id) -> VideoMasks:
            return source[video_id]

        videos.append(RecordedVideo(video_id, state, found.uri, read, found.frame_index))
    return videos


def _opened(annotations: Path) -> MaskSource:
    try:
        return SavJson(annotations)
    except MaskSourceError:
        return PngFolder(annotations)


def _newest_change(folder: Path) -> str:
    """When anything in a folder was last written."""
    return str(max(path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]))


def _same(number: int) -> int:
    return number
