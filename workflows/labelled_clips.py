"""Frames of labelled videos with their masks, to train on: clips, by number, in PyTorch.

Knows nothing of any model or loss. Which clips there are is settled once, from the newest labels
at that moment; a clip's pictures and masks are read when it is asked for, in whatever process.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import Dataset as TorchDataset

from sam2model.video import Video
from workflows.decoded_masks import decode_masks
from workflows.labelled_videos import LabelsError, Selection, newest_labels, select_spans
from workflows.query import Dataset
from workflows.storage import Storage, StorageConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClipShape:
    """frames: of a clip. step: from one frame to the next. between: from one clip's first frame to
    the next clip's; None: clips follow each other without sharing a frame."""

    frames: int = 8
    step: int = 1
    between: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "step", "between"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; wanted 1 or more")

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last, both included."""
        return (self.frames - 1) * self.step + 1

    def starts(self, first_frame: int, last_frame: int) -> range:
        """First frames of the clips that fit."""
        return range(first_frame, last_frame - self.span + 2, self.between or self.span)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """images (T, H, W, 3) uint8 RGB; masks (N, T, H, W) bool; labelled (N, T) bool: whether the
    dataset has a mask there, if only an empty one. categories: of each object, None where unnamed.
    """

    video_id: str
    frame_indices: npt.NDArray[np.int32]
    object_ids: npt.NDArray[np.int32]
    categories: tuple[str | None, ...]
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    labelled: npt.NDArray[np.bool_]


class ClipReader:
    """The clips of a selection of labels, by number. Travels to other processes.

    too_short: videos whose labels are shorter than a clip, and therefore in none.
    """

    def __init__(
        self,
        uri: str,
        selection: Selection | None = None,
        shape: ClipShape | None = None,
        storage: StorageConfig | None = None,
    ) -> None:
        """Raises NotFound where there is no dataset, QueryError for a condition that is wrong."""
        self.uri = uri
        self.shape = shape or ClipShape()
        self._storage = storage or StorageConfig()
        self._opened: Dataset | None = None
        chosen = selection or Selection()
        self._at = chosen.at or newest_labels(self._dataset)
        self._spans = select_spans(self._dataset, replace(chosen, at=self._at))
        bounds = zip(*(self._spans[name].to_pylist() for name in ("first", "last")), strict=True)
        starts = [np.array(self.shape.starts(*bound), np.int32) for bound in bounds]
        self._video = np.repeat(np.arange(len(starts)), [len(each) for each in starts])
        self._start = np.concatenate([np.empty(0, np.int32), *starts])
        names = self._spans["video_id"].to_pylist()
        short = [name for name, each in zip(names, starts, strict=True) if not len(each)]
        self.too_short = tuple(short)
        if short:
            log.warning("%d videos are shorter than a clip, such as %s", len(short), short[0])

    def __len__(self) -> int:
        return len(self._start)

    def clips(self) -> pa.Table:
        """number, video_id and first_frame of every clip."""
        return pa.table(
            {
                "number": np.arange(len(self)),
                "video_id": self._spans["video_id"].combine_chunks().take(pa.array(self._video)),
                "first_frame": self._start,
            }
        )

    def read(self, number: int) -> Clip:
        """Raises IndexError beyond the last clip, LabelsError for a video that is not the one that
        was labelled, and as Storage, Video and rle do."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"clip {number}: there are {len(self)}")
        span = {name: self._spans[name][int(self._video[number])].as_py() for name in SPAN}
        first = int(self._start[number])
        wanted = first + self.shape.step * np.arange(self.shape.frames, dtype=np.int32)
        ends = (first, int(wanted[-1]))
        rows = self._dataset.masks(span["video_id"], span["object_ids"], ends, self._at)
        decoded = decode_masks(rows, wanted)
        categories = dict(zip(span["object_ids"], span["categories"], strict=True))
        images = self._images(span["video_id"], wanted)
        if len(decoded.object_ids) and decoded.masks.shape[2:] != images.shape[1:3]:
            raise LabelsError(
                f"{span['video_id']}: frames of {images.shape[1]}×{images.shape[2]} (rows × "
                f"columns); wanted the masks' {decoded.masks.shape[2]}×{decoded.masks.shape[3]}"
            )
        return Clip(
            span["video_id"],
            wanted,
            decoded.object_ids,
            tuple(categories[object_id] for object_id in decoded.object_ids.tolist()),
            images,
            decoded.masks,
            decoded.labelled,
        )

    @property
    def _dataset(self) -> Dataset:
        """Opened by each process for itself."""
        if self._opened is None:
            self._opened = Dataset(self.uri, Storage(self._storage))
        return self._opened

    def _images(self, video_id: str, wanted: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        uri = str(self._dataset.video(video_id)["video_uri"])
        with self._dataset.storage.open_video(uri) as source, Video(source, name=uri) as video:
            frames = video.frames(int(wanted[0]), int(wanted[-1]) + 1)
            seen = set(wanted.tolist())
            images = [frame.rgb for frame in frames if frame.index in seen]
        if len(images) != len(wanted):
            raise LabelsError(
                f"{video_id}: {uri} ends before frame {wanted[len(images)]}, which is labelled"
            )
        return np.stack(images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


SPAN = ("video_id", "object_ids", "categories")


class LabelledClips(TorchDataset[dict[str, Any]]):
    """Clips as tensors, for a DataLoader with any number of workers.

    An item: images (T, 3, H, W) uint8, masks (N, T, H, W) bool, labelled (N, T) bool, object_ids
    (N,), frame_indices (T,), video_id. N differs from clip to clip: batches of more than one clip
    need a `collate_fn`.
    """

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> dict[str, Any]:
        clip = self.reader.read(number)
        return {
            "video_id": clip.video_id,
            "frame_indices": torch.from_numpy(clip.frame_indices),
            "object_ids": torch.from_numpy(clip.object_ids),
            "images": torch.from_numpy(clip.images).permute(0, 3, 1, 2),
            "masks": torch.from_numpy(clip.masks),
            "labelled": torch.from_numpy(clip.labelled),
        }
