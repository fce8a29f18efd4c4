"""DAVIS 2017 and MOSE: a palette PNG a frame, pixel = object. Knows nothing of other formats.

Overlaps: the object with the lowest id has the pixel; what others lose is counted. Labels are the
object ids where those lie in 1 … 254; a video with another id has its objects numbered 1, 2 … in
order of ids, as videos.jsonl tells. Lost: scores, prompts, categories, times, and the number of
objects beyond the last one that shows anywhere.
DAVIS' own evaluation looks at the objects of the first frame only; later ones are noted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from workflows.export_format import (
    Account,
    Common,
    ExportError,
    ExportFormat,
    FinishedVideo,
    Output,
    VideoExport,
    count_masks,
)
from workflows.label_maps import paint, palette_png
from workflows.labelled_videos import LabelledVideo

MAX_LABEL = 254  # 255 is void, pixels that nobody judges


@dataclass(frozen=True, slots=True)
class Mose(ExportFormat):
    """SPLIT/Annotations/VIDEO/00000.png, pictures under SPLIT/JPEGImages."""

    name: ClassVar[str] = "mose"
    loses: ClassVar[str] = "overlaps, scores, prompts, categories and times"

    def annotations(self, common: Common) -> str:
        return f"{common.split}/Annotations"

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"{common.split}/JPEGImages/{folder}/{frame_index:05d}.jpg"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        labels = number_objects(video)
        account = count_masks(video, common.every)
        for frame_index, rows in video.frames(common.every):
            picture, covered = paint(rows, labels, video.height, video.width)
            count_covered(account, rows, covered)
            path = f"{self.annotations(common)}/{folder}/{frame_index:05d}.png"
            output.put(path, palette_png(picture))
            if frame_index == 0:
                highest = max((labels[i] for i in covered), default=0)
                if late := sum(label > highest for label in labels.values()):
                    account.notes["objects that DAVIS' evaluation leaves out"] += late
        return VideoExport(account, labels=labels)

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        """MOSE lists its videos nowhere but in its folders."""


@dataclass(frozen=True, slots=True)
class Davis(Mose):
    """Annotations/480p/VIDEO/00000.png, pictures under JPEGImages/480p, ImageSets/2017/SPLIT.txt.

    resolution: the folder that says the size; readers open 480p unless told Full-Resolution. The
    masks keep the size of the video whatever it is called.
    """

    name: ClassVar[str] = "davis"

    resolution: str = "480p"

    def annotations(self, common: Common) -> str:
        return f"Annotations/{self.resolution}"

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"JPEGImages/{self.resolution}/{folder}/{frame_index:05d}.jpg"

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        with output.write_text(f"ImageSets/2017/{common.split}.txt") as sink:
            for video in videos:
                sink.write(video.folder + "\n")


def number_objects(video: LabelledVideo) -> dict[int, int]:
    """object_id → label. Raises ExportError for more objects than labels."""
    ids = video.object_ids
    if len(ids) > MAX_LABEL:
        raise ExportError(
            f"{video.video_id}: {len(ids)} objects; a palette PNG holds {MAX_LABEL}. Export some "
            "at a time with --where, or in another format"
        )
    if all(1 <= object_id <= MAX_LABEL for object_id in ids):
        return {object_id: object_id for object_id in ids}
    return {object_id: number for number, object_id in enumerate(ids, 1)}


def count_covered(account: Account, rows: list[dict[str, int]], covered: dict[int, int]) -> None:
    """Enter what lower ids took away on one frame."""
    areas = {row["object_id"]: row["area_px"] for row in rows}
    account.lost_px += sum(covered.values())
    account.masks_lost += sum(covered[object_id] == areas[object_id] for object_id in covered)
