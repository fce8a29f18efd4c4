"""YouTube-VIS JSON: one file with every video's tracks. Knows nothing of other formats.

Overlaps: kept, each object has its own masks. Lost: prompts, times, scores of single masks. Object
ids stay, as `object_id`; a video's id and address as `name` and `video_uri`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sam2model import rle
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
class YoutubeVis(ExportFormat):
    """content: truth (SPLIT/instances.json) or results (SPLIT/results.json, a flat list).

    counts: how truth spells run lengths. TrackEval's reader wants numbers, pycocotools decodes
    strings; results are strings always. A track's score is the mean of its predicted IoU, and 1
    where no model made it.
    """

    name: ClassVar[str] = "ytvis"
    loses: ClassVar[str] = "prompts, times and the scores of single masks"

    content: Literal["truth", "results"] = "truth"
    counts: Literal["numbers", "string"] = "numbers"

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"{common.split}/JPEGImages/{_file_name(folder, frame_index)}"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        seen: dict[int, list[dict[str, Any] | None]] = {i: [] for i in video.object_ids}
        file_names = []
        for frame_index, rows in video.frames(common.every):
            file_names.append(_file_name(folder, frame_index))
            visible = {row["object_id"]: row for row in rows if row["area_px"]}
            for object_id, places in seen.items():
                places.append(visible.get(object_id))
        annotations = [
            {
                "category_id": common.category_number(track.category),
                "iscrowd": 0,
                "height": video.height,
                "width": video.width,
                "object_id": track.object_id,
                "score": 1.0 if track.iou_pred_mean is None else track.iou_pred_mean,
                "areas": [row and row["area_px"] for row in seen[track.object_id]],
                "bboxes": [row and box_xywh_px(row) for row in seen[track.object_id]],
                "segmentations": [
                    row and {"size": [video.height, video.width], "counts": row["counts"]}
                    for row in seen[track.object_id]
                ],
            }
            for track in video.tracks
        ]
        about = {
            "name": video.video_id,
            "video_uri": video.video_uri,
            "width": video.width,
            "height": video.height,
            "length": len(file_names),
            "file_names": file_names,
        }
        account = count_masks(video, common.every)
        return VideoExport(account, {"video": about, "annotations": annotations})

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        with JsonArrays(["videos", "annotations"]) as arrays:
            for video in videos:
                video_id = arrays.append(
                    "videos", {"id": arrays.length("videos") + 1, **video.part["video"]}
                )
                for track in video.part["annotations"]:
                    number = arrays.length("annotations") + 1
                    arrays.append("annotations", self._entry(number, video_id, track))
            if self.content == "results":
                with output.write_text(f"{common.split}/results.json") as sink:
                    arrays.write_array(sink, "annotations")
            else:
                categories = categories_json(common.categories)
                with output.write_text(f"{common.split}/instances.json") as sink:
                    arrays.write(sink, info={}, licenses=[], categories=categories)

    def _entry(self, number: int, video_id: int, track: dict[str, Any]) -> dict[str, Any]:
        if self.content == "results":
            names = ("category_id", "object_id", "score", "segmentations")
            return {"video_id": video_id, **{name: track[name] for name in names}}
        segmentations = track["segmentations"]
        if self.counts == "numbers":
            segmentations = [each and _with_numbers(each) for each in segmentations]
        return {"id": number, "video_id": video_id, **track, "segmentations": segmentations}


def _file_name(folder: str, frame_index: int) -> str:
    return f"{folder}/{frame_index:05d}.jpg"


def _with_numbers(segmentation: dict[str, Any]) -> dict[str, Any]:
    return {**segmentation, "counts": rle.string_to_counts(segmentation["counts"]).tolist()}
