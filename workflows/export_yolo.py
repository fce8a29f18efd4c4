"""YOLO segmentation: a text file a frame, one polygon an object. Knows no other format.

Overlaps: kept, each object has its own polygon. Lost: object ids, scores, prompts, times.
A polygon's corners are middles of pixels, whose outline belongs to it, which is how Ultralytics
fills it: a mask of one piece comes back to the pixel, holes included. Of a mask with several parts
the lines between them are added, and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import yaml

from sam2model import rle
from workflows.contours import Path, corners, fill, single_path
from workflows.export_format import (
    Account,
    Common,
    ExportFormat,
    FinishedVideo,
    Output,
    VideoExport,
    count_masks,
)
from workflows.labelled_videos import LabelledVideo

FEWEST_CORNERS = 3  # Ultralytics takes shorter lines for boxes


@dataclass(frozen=True, slots=True)
class YoloSeg(ExportFormat):
    """labels/SPLIT/VIDEO/00000.txt, pictures under images/SPLIT/VIDEO, data.yaml."""

    name: ClassVar[str] = "yolo-seg"
    loses: ClassVar[str] = "object ids, scores, prompts and times"

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"images/{common.split}/{folder}/{frame_index:05d}.jpg"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        account = count_masks(video, common.every)
        classes = {t.object_id: common.category_number(t.category) - 1 for t in video.tracks}
        for frame_index, rows in video.frames(common.every):
            lines = [
                f"{classes[row['object_id']]} {self._polygon(video, row, account)}\n"
                for row in rows
                if row["area_px"]
            ]
            path = f"labels/{common.split}/{folder}/{frame_index:05d}.txt"
            output.put(path, "".join(lines).encode())
        return VideoExport(account)

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        names = {number - 1: name for name, number in common.categories.items()}
        # val is asked for by every reader; it names the same pictures until somebody splits them
        images = f"images/{common.split}"
        data = {"path": ".", "train": images, "val": images, "names": dict(sorted(names.items()))}
        output.put("data.yaml", yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode())

    def _polygon(self, video: LabelledVideo, row: dict[str, Any], account: Account) -> str:
        mask = rle.decode(row["counts"], video.height, video.width)
        path = single_path(mask)
        again = fill(path, video.height, video.width)
        account.added_px += int(np.count_nonzero(again & ~mask))
        account.lost_px += int(np.count_nonzero(mask & ~again))
        return " ".join(f"{value:.6f}" for value in _shares(path, video))


def _shares(path: Path, video: LabelledVideo) -> Iterator[float]:
    """x and y of the corners as shares of the picture, at the middles of pixels.

    A reader that multiplies and cuts off the fraction is then half a pixel away from the next.
    """
    polygon = corners(path)
    if len(polygon) < FEWEST_CORNERS:
        polygon = np.resize(polygon, (FEWEST_CORNERS, 2))
    shares = (polygon + 0.5) / (video.width, video.height)
    yield from shares.ravel().tolist()
