"""Masks of one video as they come from the engine, as rows of the dataset. Knows no files.

Rows leave Python's memory for Arrow's every few thousand, where they take a fifth of the room.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sam2model.tracked_masks import FrameMasks
from workflows.prompt_rows import PromptRow
from workflows.rows import MASKS_SCHEMA, Track

ROWS_OF_A_BATCH = 8192
SCORES = ("object_score", "iou_pred", "stability")
KINDS = ("mean", "min")


class VideoMasks:
    """Collects the masks of one video, frame by frame, in any order of frames."""

    def __init__(self, video_id: str) -> None:
        self.num_frames = 0
        self._video_id = video_id
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: FrameMasks) -> None:
        self.num_frames += 1
        for mask in frame.masks:
            x0, y0, x1, y1 = mask.box_xyxy_px
            self._rows.append(
                {
                    "video_id": self._video_id,
                    "object_id": mask.object_id,
                    "frame_index": frame.frame_index,
                    "pts_s": frame.pts_s,
                    "revision": 0,  # set where they are put
                    "counts": mask.counts,
                    "height": frame.height,
                    "width": frame.width,
                    "area_px": mask.area_px,
                    "box": {"x0": x0, "y0": y0, "x1": x1, "y1": y1} if mask.area_px else None,
                    "object_score": mask.object_score,
                    "iou_pred": mask.iou_pred,
                    "stability": mask.stability,
                    "is_prompt": mask.is_prompt,
                }
            )
        if len(self._rows) >= ROWS_OF_A_BATCH:
            self._flush()

    def table(self) -> pa.Table:
        """All rows so far, MASKS_SCHEMA."""
        self._flush()
        return pa.Table.from_batches(self._batches, schema=MASKS_SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=MASKS_SCHEMA))
            self._rows = []


def tracks_of(
    video_id: str, masks: pa.Table, prompts: Iterable[PromptRow], provenance: Mapping[str, Any]
) -> tuple[Track, ...]:
    """A track for each object of a video: its span, its presence, the range of its scores.

    provenance: further columns of TRACKS_SCHEMA, the same for all.
    """
    present = pc.cast(pc.greater(masks["area_px"], 0), pa.int32())
    grouped = masks.append_column("present", present).group_by("object_id", use_threads=False)
    rows = grouped.aggregate(
        [("frame_index", "min"), ("frame_index", "max"), ("present", "sum")]
        + [(name, kind) for name in SCORES for kind in KINDS]
    ).to_pylist()
    by_object: dict[int, list[PromptRow]] = {}
    for prompt in prompts:
        by_object.setdefault(prompt["object_id"], []).append(prompt)
    return tuple(
        Track(
            video_id=video_id,
            object_id=row["object_id"],
            prompts=tuple(by_object[row["object_id"]]),
            category=_category(by_object[row["object_id"]]),
            first_frame=row["frame_index_min"],
            last_frame=row["frame_index_max"],
            frames_present=row["present_sum"],
            **{f"{name}_{kind}": row[f"{name}_{kind}"] for name in SCORES for kind in KINDS},
            **provenance,
        )
        for row in rows
    )


def _category(prompts: Sequence[PromptRow]) -> str | None:
    """The first one that a prompt names."""
    return next((prompt["category"] for prompt in prompts if prompt.get("category")), None)
