"""SA-V JSON: a file a video, every object on every annotated frame. Knows no other format.

Overlaps: kept, each object has its own mask. Lost: prompts, categories, times, predicted IoU and
object scores; stability stays in `auto` files. Object ids stay, as `masklet_id`.
SA-V annotates every fourth frame of 24 frames/s. Entry i of ours is frame i · ann_every of the
video, and `ann_every` stands in the file; sam2's reader is told it by its own option of that name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sam2model import rle
from workflows.export_format import (
    Common,
    ExportError,
    ExportFormat,
    FinishedVideo,
    Output,
    VideoExport,
    count_masks,
)
from workflows.labelled_videos import LabelledVideo
from workflows.rows import Source, Track

SMALL_PX, LARGE_PX = 32**2, 96**2  # mean area of an object where it is visible
STRICT_FPS = 6  # of SA-V's own annotation


@dataclass(frozen=True, slots=True)
class Sav(ExportFormat):
    """SPLIT/VIDEO_manual.json (what sam2's training opens) or VIDEO_auto.json; SPLIT.txt.

    strict: annotate 6 frames a second as SA-V does, every round(fps / 6)-th; needs every = 1.
    """

    name: ClassVar[str] = "sav"
    loses: ClassVar[str] = "prompts, categories, times, predicted IoU and object scores"

    masklets: Literal["manual", "auto"] = "manual"
    strict: bool = False

    def frame_path(self, folder: str, frame_index: int, common: Common) -> str:
        return f"{common.split}/JPEGImages_24fps/{folder}/{frame_index:05d}.jpg"

    def write_video(
        self, video: LabelledVideo, folder: str, common: Common, output: Output
    ) -> VideoExport:
        every = self._every(video, common)
        stability = _stability(video)
        masklets: list[list[dict[str, Any]]] = []
        scores: list[list[float | None]] = []
        areas: dict[int, list[int]] = {object_id: [] for object_id in video.object_ids}
        size = [video.height, video.width]
        empty = rle.counts_to_string([video.height * video.width]) if all(size) else ""
        for frame_index, rows in video.frames(every):
            labelled = {row["object_id"]: row for row in rows}
            of_frame = [labelled.get(i, {"counts": empty, "area_px": 0}) for i in areas]
            masklets.append([{"size": size, "counts": row["counts"]} for row in of_frame])
            scores.append([stability.get((i, frame_index)) for i in areas])
            for seen, row in zip(areas.values(), of_frame, strict=True):
                seen.append(row["area_px"])
        document = {
            **_about_video(video, folder, common),
            "ann_every": every,
            **_about_masklets(video.tracks, list(areas.values()), video.height * video.width),
            "masklet_type": [self.masklets] * len(areas),
            "masklet_stability_score": scores if self.masklets == "auto" else [None] * len(areas),
            "masklet": masklets,
        }
        path = f"{common.split}/{folder}_{self.masklets}.json"
        output.put(path, json.dumps(document, allow_nan=False).encode())
        return VideoExport(count_masks(video, every))

    def write_dataset(
        self, videos: Iterator[FinishedVideo], common: Common, output: Output
    ) -> None:
        with output.write_text(f"{common.split}.txt") as sink:
            for video in videos:
                sink.write(video.folder + "\n")

    def _every(self, video: LabelledVideo, common: Common) -> int:
        if not self.strict:
            return common.every
        if common.every != 1 or not video.fps:
            raise ExportError(
                f"{video.video_id}: strict with every = {common.every} and {video.fps} frames/s; "
                "wanted every = 1 and a video that says its rate"
            )
        return max(1, round(video.fps / STRICT_FPS))


def _about_video(video: LabelledVideo, folder: str, common: Common) -> dict[str, Any]:
    return {
        "video_id": folder,
        "video_duration": video.duration_s or 0.0,
        "video_frame_count": float(video.num_frames),
        "video_height": float(video.height),
        "video_width": float(video.width),
        "video_resolution": float(video.height * video.width),
        "video_environment": "",
        "video_split": common.split,
        "video_uri": video.video_uri,
    }


def _about_masklets(
    tracks: Sequence[Track], areas: Sequence[Sequence[int]], frame_px: int
) -> dict[str, Any]:
    """Lists with a value an object. areas: of each object, px on each annotated frame."""
    visible = [[area for area in seen if area] for seen in areas]
    means = [sum(seen) / len(seen) if seen else 0.0 for seen in visible]
    shown = [[area > 0 for area in seen] for seen in areas]
    return {
        "masklet_id": [track.object_id for track in tracks],
        "masklet_size_rel": [mean / frame_px for mean in means],
        "masklet_size_abs": means,
        "masklet_size_bucket": [_bucket(mean) for mean in means],
        "masklet_visibility_changes": [_visibility_changes(seen) for seen in shown],
        # in annotated frames, as a number with a point, as in Meta's files; -1.0: never
        "masklet_first_appeared_frame": [
            float(seen.index(True)) if any(seen) else -1.0 for seen in shown
        ],
        "masklet_frame_count": [len(seen) for seen in areas],
        "masklet_edited_frame_count": [_edited_frames(track) for track in tracks],
        "masklet_num": len(tracks),
    }


def _bucket(mean_px: float) -> str:
    if mean_px < SMALL_PX:
        return "small"
    return "medium" if mean_px < LARGE_PX else "large"


def _visibility_changes(shown: Sequence[bool]) -> int:
    """How often the object goes or comes back; its first appearance does not count."""
    since = shown[shown.index(True) :] if True in shown else []
    return sum(now != before for before, now in zip(since, since[1:], strict=False))


def _edited_frames(track: Track) -> int:
    """Frames that a person prompted in the revision shown."""
    if track.source != Source.REFINE:
        return 0
    return len({prompt["frame_index"] for prompt in track.prompts})


def _stability(video: LabelledVideo) -> Mapping[tuple[int, int], float | None]:
    columns = (video.masks[name].to_pylist() for name in ("object_id", "frame_index", "stability"))
    return {(i, frame): score for i, frame, score in zip(*columns, strict=True)}
