"""MOTS: a text file and 16-bit PNGs a video, pixel = class · 1000 + instance. Knows no others.

Overlaps: forbidden by the format; the object with the lowest id has the pixel, and what others lose
is counted. Classes are `car` 1 and `pedestrian` 2 as in KITTI MOTS, any other from 3 in order of
the export's categories; 10 is MOTS' own for regions to ignore and stays free. Instances of a class
are numbered from 0 in order of object ids, as videos.jsonl tells. Lost: scores, prompts, times.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sam2model import rle
from workflows.export_davis import count_covered
from workflows.export_format import (
    Common,
    ExportError,
    ExportFormat,
    FinishedVideo,
    Output,
    VideoExport,
    count_masks,
)
from workflows.label_maps import LabelMap, grey16_png, paint
from workflows.labelled_videos import LabelledVideo

KITTI_CLASSES = {"car": 1, "pedestrian": 2}
IGNORE_CLASS = 10
INSTANCES = 1000
MAX_CLASS = 65  # 65 · 1000 + 535 is the last code of 16 bits; the class is used whole or not at all


@dataclass(frozen=True, slots=True)
class Mots(ExportFormat):
    """SPLIT/instances_txt/VIDEO.txt, SPLIT/instances/VIDEO/000000.png, SPLIT.seqmap, classes.txt.

    first_frame: the number of the video's first frame, 0 in KITTI MOTS and 1 in MOTSChallenge.
    """

    name: ClassVar[str] = "mots"
    loses: ClassVar[str] = "overlaps, scores, prompts and times"

    first_frame: int = 0

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"{common.split}/images/{folder}/{frame_index + self.first_frame:06d}.jpg"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        codes = _codes(video, class_numbers(common.categories))
        account = count_masks(video, common.every)
        lines = []
        for frame_index, rows in video.frames(common.every):
            number = frame_index + self.first_frame
            picture, covered = paint(rows, codes, video.height, video.width)
            count_covered(account, rows, covered)
            path = f"{common.split}/instances/{folder}/{number:06d}.png"
            output.put(path, grey16_png(picture))
            lines += [f"{number} {line}\n" for line in _lines(picture, codes, covered)]
        output.put(f"{common.split}/instances_txt/{folder}.txt", "".join(lines).encode())
        last = self.first_frame + max(video.num_frames - 1, 0)
        return VideoExport(account, {"last": last}, codes)

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        with output.write_text(f"{common.split}.seqmap") as sink:
            for video in videos:
                sink.write(
                    f"{video.folder} empty {self.first_frame:06d} {video.part['last']:06d}\n"
                )
        numbers = sorted(class_numbers(common.categories).items(), key=lambda item: item[1])
        output.put("classes.txt", "".join(f"{n} {name}\n" for name, n in numbers).encode())


def class_numbers(categories: Mapping[str, int]) -> dict[str, int]:
    """Category → class; the same as long as the categories keep their numbers."""
    numbers = {name: KITTI_CLASSES[name] for name in categories if name in KITTI_CLASSES}
    others = [n for n in categories if n not in KITTI_CLASSES]
    free = (n for n in range(3, 3 + len(others) + 1) if n != IGNORE_CLASS)
    for name, number in zip(sorted(others, key=categories.__getitem__), free, strict=False):
        numbers[name] = number
    return numbers


def _codes(video: LabelledVideo, classes: Mapping[str, int]) -> dict[int, int]:
    """object_id → class · 1000 + instance. Raises ExportError where 16 bits do not hold them."""
    codes: dict[int, int] = {}
    taken: Counter[int] = Counter()
    for track in video.tracks:
        number = classes[track.category or "object"]
        if number >= MAX_CLASS or taken[number] >= INSTANCES:
            raise ExportError(
                f"{video.video_id}: object {track.object_id} would be instance {taken[number]} of "
                f"class {number}; MOTS holds {INSTANCES} instances of classes up to {MAX_CLASS - 1}"
            )
        codes[track.object_id] = number * INSTANCES + taken[number]
        taken[number] += 1
    return codes


def _lines(
    picture: LabelMap, codes: Mapping[int, int], covered: Mapping[int, Any]
) -> Iterator[str]:
    """`id class height width rle` of each object that still has a pixel."""
    shown = set(np.unique(picture).tolist())
    for object_id in covered:
        code = codes[object_id]
        if code in shown:
            height, width = picture.shape
            counts = rle.encode_mask(picture == code)
            yield f"{code} {code // INSTANCES} {height} {width} {counts}"
