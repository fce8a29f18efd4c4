"""CVAT for video 1.1: an XML file a video, one shape a mask. Knows no other format.

Overlaps: kept, each shape stands alone; lower object ids lie on top. CVAT has no tracks of masks:
its importer keeps the first mask of a track and drops the rest. So every mask is a track of its own
that ends on the next frame, as CVAT itself writes them, and the object's id lives on as the group
(object_id + 1, for 0 is no group). Lost: the track itself, scores, prompts, times.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from sam2model import rle
from workflows.export_format import (
    NO_CATEGORY,
    Common,
    ExportFormat,
    FinishedVideo,
    Output,
    VideoExport,
    count_masks,
)
from workflows.labelled_videos import LabelledVideo

# what XML 1.0 cannot hold, not even escaped
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Cvat(ExportFormat):
    """annotations/VIDEO.xml, to be uploaded as "CVAT 1.1" to a task with that video."""

    name: ClassVar[str] = "cvat"
    loses: ClassVar[str] = "tracks (their id is the group), scores, prompts and times"

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"images/{folder}/{frame_index:06d}.jpg"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        labels = {t.object_id: t.category or NO_CATEGORY for t in video.tracks}
        last = (video.num_frames - 1) // common.every * common.every
        number = 0
        with output.write_text(f"annotations/{folder}.xml") as sink:
            sink.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
            sink.write(f"  <version>1.1</version>\n{_meta(video, sorted(set(labels.values())))}")
            for frame_index, rows in video.frames(common.every):
                for row in rows:
                    if row["area_px"]:
                        ends = frame_index + common.every if frame_index < last else None
                        label = labels[row["object_id"]]
                        sink.write(_track(number, label, frame_index, ends, row, video))
                        number += 1
            sink.write("</annotations>\n")
        return VideoExport(count_masks(video, common.every))

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        """CVAT takes one file a task; there is nothing about all of them."""


def _track(
    number: int,
    label: str,
    frame_index: int,
    ends: int | None,
    row: dict[str, Any],
    video: LabelledVideo,
) -> str:
    """A mask on one frame, and its end on the frame `ends` unless the video ends there."""
    group = row["object_id"] + 1
    shapes = [_mask(frame_index, row, video)]
    if ends is not None:
        outside = 'rle="0, 1" left="0" top="0" width="1" height="1"'
        shapes.append(_shape(ends, True, group, outside))
    return (
        f'  <track id="{number}" label={_quoted(label)} source="manual" group_id="{group}">\n'
        f"{''.join(shapes)}  </track>\n"
    )


def _mask(frame_index: int, row: dict[str, Any], video: LabelledVideo) -> str:
    left, top, right, bottom = rle.box_xyxy(row["counts"], video.height, video.width)
    window = rle.decode(row["counts"], video.height, video.width)[top:bottom, left:right]
    runs = ", ".join(map(str, row_runs(window)))
    where = f'rle="{runs}" left="{left}" top="{top}" width="{right - left}"'
    return _shape(frame_index, False, row["object_id"] + 1, f'{where} height="{bottom - top}"')


def _shape(frame_index: int, outside: bool, group: int, mask: str) -> str:
    return (
        f'    <mask frame="{frame_index}" keyframe="1" outside="{int(outside)}" occluded="0" '
        f'{mask} z_order="{-group}"/>\n'
    )


def row_runs(window: npt.NDArray[np.bool_]) -> list[int]:
    """Run lengths row by row, zeros first, as CVAT keeps a mask within its box."""
    flat = np.concatenate([[False], window.ravel(), [not window.flat[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(ends, prepend=0).tolist()
    return runs


def _meta(video: LabelledVideo, labels: list[str]) -> str:
    names = "".join(
        f"        <label><name>{_escaped(name)}</name><type>mask</type><attributes/></label>\n"
        for name in labels
    )
    return (
        "  <meta>\n    <task>\n"
        f"      <name>{_escaped(video.video_id)}</name>\n"
        f"      <size>{video.num_frames}</size>\n"
        "      <mode>interpolation</mode>\n"
        "      <start_frame>0</start_frame>\n"
        f"      <stop_frame>{video.num_frames - 1}</stop_frame>\n"
        f"      <labels>\n{names}      </labels>\n"
        f"      <original_size><width>{video.width}</width><height>{video.height}</height>"
        "</original_size>\n"
        f"      <source>{_escaped(video.video_uri)}</source>\n"
        "    </task>\n  </meta>\n"
    )


def _escaped(text: str) -> str:
    return escape(NOT_XML.sub("\ufffd", text))


def _quoted(text: str) -> str:
    return quoteattr(NOT_XML.sub("\ufffd", text))
