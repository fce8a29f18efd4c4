"""Label Studio tasks: boxes on videos, masks on pictures. Knows no other format.

Overlaps: kept, each region stands alone. Label Studio has no masks on videos: `tasks_video.json`
holds a box a frame (lost: the shape, counted as px added between mask and box), and with pictures
exported `tasks_image.json` holds every mask as a brush region. Lost: scores, prompts; of a region
its object id stays as its id.
The labelling configuration that the tasks fit is `label_config.xml`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from sam2model import rle
from workflows.export_format import (
    NO_CATEGORY,
    Account,
    Common,
    ExportFormat,
    FinishedVideo,
    JsonArrays,
    Output,
    VideoExport,
    box_xywh_px,
    count_masks,
)
from workflows.labelled_videos import LabelledVideo
from workflows.rows import Track

CHANNELS = 4  # of the RGBA pictures that brush regions pack
LENGTH_BITS = (3, 4, 8, 16)  # the four sizes in which a run's length may be written
WORD_BITS = 8


@dataclass(frozen=True, slots=True)
class LabelStudio(ExportFormat):
    """content: video (boxes, tasks_video.json) or image (masks, tasks_image.json).

    root_url: what Label Studio finds the pictures under, for a project with local storage such as
    /data/local-files/?d=my-export.
    """

    name: ClassVar[str] = "label-studio"
    loses: ClassVar[str] = (
        "scores and prompts; with content = video the shapes, of which boxes stay"
    )

    content: Literal["video", "image"] = "video"
    root_url: str = ""

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"images/{folder}/{frame_index:05d}.jpg"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        account = count_masks(video, common.every)
        if self.content == "image":
            return VideoExport(account, {"tasks": list(self._image_tasks(video, folder, common))})
        return VideoExport(account, {"tasks": [_video_task(video, common, account)]})

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        with JsonArrays(["tasks"]) as arrays:
            for video in videos:
                for task in video.part["tasks"]:
                    arrays.append("tasks", task)
            with output.write_text(f"tasks_{self.content}.json") as sink:
                arrays.write_array(sink, "tasks")
        output.put("label_config.xml", _label_config(self.content, common).encode())

    def _image_tasks(
        self, video: LabelledVideo, folder: str, common: Common
    ) -> Iterator[dict[str, Any]]:
        labels = {t.object_id: t.category or NO_CATEGORY for t in video.tracks}
        for frame_index, rows in video.frames(common.every):
            regions = [
                {
                    "id": f"{row['object_id']}",
                    "type": "brushlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "origin": "manual",
                    "image_rotation": 0,
                    "original_width": video.width,
                    "original_height": video.height,
                    "value": {
                        "format": "rle",
                        "rle": pack_mask(rle.decode(row["counts"], video.height, video.width)),
                        "brushlabels": [labels[row["object_id"]]],
                    },
                }
                for row in rows
                if row["area_px"]
            ]
            url = "/".join(
                [*filter(None, [self.root_url]), self.frame_path(folder, frame_index, common)]
            )
            yield {
                "data": {
                    "image": url,
                    "video_id": video.video_id,
                    "frame_index": frame_index,
                },
                "annotations": [{"result": regions}],
            }


def _video_task(video: LabelledVideo, common: Common, account: Account) -> dict[str, Any]:
    fps = video.fps or 25.0  # what Label Studio assumes where it is not told
    sequences: dict[int, list[dict[str, Any]]] = {i: [] for i in video.object_ids}
    for frame_index, rows in video.frames(common.every):
        visible = {row["object_id"]: row for row in rows if row["area_px"]}
        for object_id, sequence in sequences.items():
            if object_id in visible:
                x, y, width, height = box_xywh_px(visible[object_id])
                account.added_px += round(width * height) - visible[object_id]["area_px"]
                sequence.append(
                    {
                        "frame": frame_index + 1,
                        "time": frame_index / fps,
                        "x": 100 * x / video.width,
                        "y": 100 * y / video.height,
                        "width": 100 * width / video.width,
                        "height": 100 * height / video.height,
                        "enabled": True,
                        "rotation": 0,
                    }
                )
            elif sequence:
                sequence[-1]["enabled"] = False  # shown up to here, not carried on
    for sequence in sequences.values():
        if sequence:
            sequence[-1]["enabled"] = False
    regions = [
        _video_region(video, track, sequences[track.object_id])
        for track in video.tracks
        if sequences[track.object_id]
    ]
    return {
        "data": {"video": video.video_uri, "video_id": video.video_id, "fps": fps},
        "annotations": [{"result": regions}],
    }


def _video_region(
    video: LabelledVideo, track: Track, sequence: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": f"{track.object_id}",
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "origin": "manual",
        "value": {
            "framesCount": video.num_frames,
            "duration": video.duration_s or video.num_frames / (video.fps or 25.0),
            "sequence": sequence,
            "labels": [track.category or NO_CATEGORY],
        },
    }


def pack_mask(mask: npt.NDArray[np.bool_]) -> list[int]:
    """A brush region: the bytes of thi.ng's rle-pack of the mask as an RGBA picture, row by row.

    32 bits: how many words. 5: bits of a word, less 1. 4 times 4: the sizes of lengths, less 1.
    Then for each run a 1, which size its length has (2 bits), the length less 1, and the word.
    """
    flat = np.ascontiguousarray(mask).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}{WORD_BITS - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in LENGTH_BITS]
    for length, is_set in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        word = f"{255 if is_set else 0:0{WORD_BITS}b}"
        while length:
            piece = min(length, 1 << LENGTH_BITS[-1])
            place = next(n for n, size in enumerate(LENGTH_BITS) if piece <= 1 << size)
            bits.append(f"1{place:02b}{piece - 1:0{LENGTH_BITS[place]}b}{word}")
            length -= piece
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return list(int(joined, 2).to_bytes(len(joined) // 8, "big"))


def _label_config(content: str, common: Common) -> str:
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in common.categories)
    if content == "image":
        return (
            '<View><Image name="image" value="$image"/>'
            f'<BrushLabels name="label" toName="image">{labels}</BrushLabels></View>\n'
        )
    return (
        '<View><Video name="video" value="$video" frameRate="$fps"/>'
        f'<VideoRectangle name="box" toName="video"/>'
        f'<Labels name="label" toName="video">{labels}</Labels></View>\n'
    )
