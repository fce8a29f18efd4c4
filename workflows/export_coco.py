"""COCO JSON: an image a frame, an annotation a mask. Knows nothing of other formats.

Overlaps: kept, each object has its own mask. Lost: prompts. Object ids stay, as `track_id`; videos
are listed, and images name theirs with their frame's index and time, as COCO-VID readers expect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from workflows.export_format import (
    Common,
    ExportFormat,
    FinishedVideo,
    JsonArrays,
    Output,
    VideoExport,
    box_xywh_px,
    categories_json,
    count_masks,
)
from workflows.labelled_videos import LabelledVideo


@dataclass(frozen=True, slots=True)
class Coco(ExportFormat):
    """annotations/instances_SPLIT.json, run lengths as strings; pictures under SPLIT/."""

    name: ClassVar[str] = "coco"
    loses: ClassVar[str] = "prompts and times"

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"{common.split}/{_file_name(folder, frame_index)}"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        category_ids = {t.object_id: common.category_number(t.category) for t in video.tracks}
        images, annotations = [], []
        for place, (frame_index, rows) in enumerate(video.frames(common.every)):
            images.append(
                {
                    "file_name": _file_name(folder, frame_index),
                    "width": video.width,
                    "height": video.height,
                    "frame_id": frame_index,
                }
            )
            annotations += [
                {
                    "image": place,
                    "category_id": category_ids[row["object_id"]],
                    "track_id": row["object_id"],
                    "iscrowd": 0,
                    "area": row["area_px"],
                    "bbox": box_xywh_px(row),
                    "segmentation": {
                        "size": [video.height, video.width],
                        "counts": row["counts"],
                    },
                    "score": row["iou_pred"],
                }
                for row in rows
                if row["area_px"]
            ]
        about = {"name": video.video_id, "video_uri": video.video_uri, "fps": video.fps}
        part = {"video": about, "images": images, "annotations": annotations}
        return VideoExport(count_masks(video, common.every), part)

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        with JsonArrays(["videos", "images", "annotations"]) as arrays:
            for video in videos:
                _append(arrays, video.part)
            categories = categories_json(common.categories)
            with output.write_text(f"annotations/instances_{common.split}.json") as sink:
                arrays.write(sink, info={}, licenses=[], categories=categories)


def _append(arrays: JsonArrays, part: Any) -> None:
    video_id = arrays.length("videos") + 1
    arrays.append("videos", {"id": video_id, **part["video"]})
    first_image = arrays.length("images") + 1
    for place, image in enumerate(part["images"]):
        arrays.append("images", {"id": first_image + place, "video_id": video_id, **image})
    for annotation in part["annotations"]:
        image_id = first_image + annotation.pop("image")
        number = arrays.length("annotations") + 1
        arrays.append("annotations", {"id": number, "image_id": image_id, **annotation})


def _file_name(folder: str, frame_index: int) -> str:
    return f"{folder}/{frame_index:05d}.jpg"
