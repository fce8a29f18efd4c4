"""Where masks that already exist are read from: folders of PNGs, SA-V JSON files, mask rows.

Knows nothing of metrics, models or the dataset's tables. Every source is a mapping video →
object → frame → run lengths; the file sources read one video when it is asked for, not before.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam2model import rle

VOID = 255  # DAVIS' label of pixels that count as neither object nor background
FRAMES_PER_SAV_ANNOTATION = 4  # 24 frames/s of video, 6 frames/s of annotation


class MaskSourceError(ValueError):
    """Masks that cannot be read; the message says what, where, got and wanted."""


@dataclass(frozen=True, slots=True)
class Rle:
    """One mask as COCO run lengths: counts is the compressed string."""

    counts: str
    height: int
    width: int

    @classmethod
    def empty(cls, height: int, width: int) -> "Rle":
        return cls(rle.counts_to_string([height * width]), height, width)


ObjectMasks = Mapping[int, Rle]  # frame_index → mask
VideoMasks = Mapping[int, ObjectMasks]  # object_id → its masks
MaskSource = Mapping[str, VideoMasks]  # video_id → its objects


def masks_from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, dict[int, Rle]]]:
    """Masks of rows that have video_id, object_id, frame_index, counts, height and width.

    Raises MaskSourceError for a mask given twice: the rows of two revisions, for example.
    """
    videos: dict[str, dict[int, dict[int, Rle]]] = {}
    for row in rows:
        frames = videos.setdefault(row["video_id"], {}).setdefault(row["object_id"], {})
        frame_index = row["frame_index"]
        if frame_index in frames:
            raise MaskSourceError(
                f"{row['video_id']}: object {row['object_id']} has two masks on frame "
                f"{frame_index}; wanted rows of one revision"
            )
        frames[frame_index] = Rle(row["counts"], row["height"], row["width"])
    return videos


class PngFolder(Mapping[str, VideoMasks]):
    """A folder with a folder of PNGs a video, as in DAVIS, MOSE and SA-V.

    VIDEO/00005.png holds all objects of frame 5: pixel = object id, 0 background, 255 void, which
    counts as background. VIDEO/001/00005.png holds object 1 alone: any pixel above 0.
    An object has a mask, empty or not, on each frame of the video (of its own folder in SA-V).
    """

    def __init__(self, root: Path) -> None:
        """Raises MaskSourceError if root is not a folder with folders in it."""
        self.root = root
        self._video_ids = [path.name for path in _folders(root)] if root.is_dir() else []
        if not self._video_ids:
            raise MaskSourceError(f"{root}: wanted a folder with a folder of PNGs a video")

    def __iter__(self) -> Iterator[str]:
        return iter(self._video_ids)

    def __len__(self) -> int:
        return len(self._video_ids)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._video_ids  # without reading it

    def __getitem__(self, video_id: str) -> VideoMasks:
        """Reads and encodes the video; MaskSourceError if that fails, KeyError if it is unknown."""
        if video_id not in self._video_ids:
            raise KeyError(video_id)
        folder = self.root / video_id
        object_folders = _folders(folder)
        if not object_folders:
            return _read_label_maps(folder)
        return {
            _number(path): {index: _read_binary(png) for index, png in _pngs(path).items()}
            for path in object_folders
        }


class SavJson(Mapping[str, VideoMasks]):
    """A folder of SA-V annotation files, VIDEO_manual.json or VIDEO_auto.json.

    kind: "manual" or "auto", which of the two to read.
    frames_per_annotation: entry i describes frame i · frames_per_annotation of the video.
    """

    def __init__(
        self,
        root: Path,
        kind: str = "manual",
        frames_per_annotation: int = FRAMES_PER_SAV_ANNOTATION,
    ) -> None:
        """Raises MaskSourceError if root holds no such file."""
        ending = f"_{kind}.json"
        self._paths = {path.name.removesuffix(ending): path for path in root.glob(f"*{ending}")}
        if not self._paths:
            raise MaskSourceError(f"{root}: wanted a folder with files named VIDEO{ending}")
        self.frames_per_annotation = frames_per_annotation

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._paths  # without reading it

    def __getitem__(self, video_id: str) -> VideoMasks:
        return read_sav_json(self._paths[video_id], self.frames_per_annotation)


def read_sav_json(
    path: Path, frames_per_annotation: int = FRAMES_PER_SAV_ANNOTATION
) -> dict[int, dict[int, Rle]]:
    """The masks of one SA-V annotation file. Raises MaskSourceError if it is not one.

    A file that says how far its annotations lie apart, in `ann_every`, is believed.
    """
    try:
        video = json.loads(path.read_text(encoding="utf-8"))
        frames_per_annotation = int(video.get("ann_every", frames_per_annotation))
        object_ids = [int(object_id) for object_id in video["masklet_id"]]
        masks: dict[int, dict[int, Rle]] = {object_id: {} for object_id in object_ids}
        for entry, masklets in enumerate(video["masklet"]):
            for object_id, masklet in zip(object_ids, masklets, strict=True):
                height, width = masklet["size"]
                mask = Rle(masklet["counts"], int(height), int(width))
                masks[object_id][entry * frames_per_annotation] = mask
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MaskSourceError(
            f"{path}: {type(error).__name__}: {error}; wanted SA-V JSON, `masklet` a list of "
            "frames with one mask for each `masklet_id`"
        ) from error
    return masks


def _read_label_maps(folder: Path) -> VideoMasks:
    masks: dict[int, dict[int, Rle]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for frame_index, png in _pngs(folder).items():
        labels = _read_png(png)
        sizes[frame_index] = labels.shape
        ids = [int(label) for label in np.unique(labels) if label not in (0, VOID)]
        if len(sizes) == 1:
            # DAVIS numbers objects 1 to the highest of the first frame, gaps included.
            masks = {object_id: {} for object_id in range(1, max(ids, default=0) + 1)}
        for object_id in ids:
            masks.setdefault(object_id, {})[frame_index] = _encode(labels == object_id)
    return {
        object_id: {index: frames.get(index) or Rle.empty(*size) for index, size in sizes.items()}
        for object_id, frames in sorted(masks.items())
    }


def _read_binary(png: Path) -> Rle:
    return _encode(_read_png(png) > 0)


def _encode(mask: npt.NDArray[np.bool_]) -> Rle:
    return Rle(rle.encode_mask(mask), *mask.shape)


def _pngs(folder: Path) -> dict[int, Path]:
    """Frame index → PNG file, in order of frames."""
    pngs = {_number(path): path for path in folder.glob("*.png")}
    if not pngs:
        raise MaskSourceError(f"{folder}: no PNG files; wanted one a frame, such as 00005.png")
    return dict(sorted(pngs.items()))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _number(path: Path) -> int:
    if not path.stem.isascii() or not path.stem.isdigit():
        raise MaskSourceError(f"{path}: wanted a number as name, such as 00005")
    return int(path.stem)


def _read_png(path: Path) -> npt.NDArray[np.uint8]:
    """Labels (H, W): palette indices, grey levels or 0 and 1, never colours."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except OSError as error:
        raise MaskSourceError(f"{path}: cannot be read as an image: {error}") from error
    if mode not in ("P", "L", "1"):
        raise MaskSourceError(f"{path}: pixels are {mode}; wanted palette (P) or 8-bit grey (L)")
    return pixels.astype(np.uint8)
