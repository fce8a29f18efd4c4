"""Manifest rows from COCO JSON: YouTube-VIS, or images with a video and tracks. Opens no pixels.

YouTube-VIS: `videos` with `file_names`, `annotations` with a list of `segmentations` each. The
number in a file's name is the frame's number in the video. COCO with videos: `images` with
`video_id` and `frame_id` (or `frame_index`, from 0), `annotations` with `image_id` and `track_id`
(or `instance_id`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from workflows.manifest import ManifestError
from workflows.manifest_sources import Row
from workflows.prompt_rows import PromptRow
from workflows.storage import Storage
from workflows.video_files import FoundVideo, VideoFiles

PromptKind = Literal["mask", "box"]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One object on one frame, as annotated."""

    number: int  # of the frame, in the dataset's own naming
    segmentation: Any  # COCO RLE, compressed or not; polygons are refused
    box_xywh_px: list[float] | None


@dataclass(frozen=True, slots=True)
class _Track:
    object_id: int
    category: str | None
    seen: list[_Seen]  # in the order of frames


def rows_from_json(
    uri: str, storage: Storage, videos: VideoFiles, kind: PromptKind = "mask"
) -> Iterator[Row]:
    """One row a video, each object prompted by what is annotated first.

    Holds the whole document. The video's id is the folder of its frames, else its name, else its
    number; the number is kept as tag `source_id`. Raises ManifestError naming the annotation.
    """
    document = _parse(storage.read_bytes(uri), uri)
    try:
        tracks = (
            _tracks_of_images(document)
            if "images" in document
            else _tracks_of_youtube_vis(document)
        )
        for video in document["videos"]:
            video_id = _name_of(video)
            found = videos.find(video_id)
            yield {
                "video_id": video_id,
                "video_uri": found.uri,
                "prompts": [
                    prompt
                    for track in tracks.get(video["id"], [])
                    if (prompt := _prompt_of(track, found, kind)) is not None
                ],
                "tags": [("source_id", str(video["id"]))],
            }
    except ManifestError as error:
        raise ManifestError(f"{uri}: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ManifestError(
            f"{uri}: {type(error).__name__}: {error}; wanted YouTube-VIS or COCO with videos"
        ) from error


def _parse(data: bytes, uri: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ManifestError(f"{uri}: not JSON: {error}") from error
    for key in ("videos", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ManifestError(f"{uri}: no list `{key}`; wanted YouTube-VIS or COCO with videos")
    assert isinstance(document, dict)
    return document


def _tracks_of_youtube_vis(document: dict[str, Any]) -> dict[Any, list[_Track]]:
    """Video number → its tracks."""
    categories = _categories(document)
    numbers = {
        video["id"]: [int(PurePosixPath(name).stem) for name in video["file_names"]]
        for video in document["videos"]
    }
    tracks: dict[Any, list[_Track]] = {}
    for entry in document["annotations"]:
        segmentations = entry["segmentations"]
        boxes = entry.get("bboxes") or [None] * len(segmentations)
        seen = [
            _Seen(number, segmentation, box)
            for number, segmentation, box in zip(
                numbers[entry["video_id"]], segmentations, boxes, strict=True
            )
        ]
        track = _Track(int(entry["id"]), categories.get(entry.get("category_id")), seen)
        tracks.setdefault(entry["video_id"], []).append(track)
    return tracks


def _tracks_of_images(document: dict[str, Any]) -> dict[Any, list[_Track]]:
    """Video number → its tracks."""
    categories = _categories(document)
    places = {
        image["id"]: (image["video_id"], image.get("frame_index", image.get("frame_id")))
        for image in document["images"]
    }
    tracks: dict[tuple[Any, int], _Track] = {}
    for entry in document["annotations"]:
        video, number = places[entry["image_id"]]
        object_id = entry.get("track_id", entry.get("instance_id"))
        if object_id is None or number is None:
            raise ManifestError(
                f"annotation {entry.get('id')}: wanted a track_id (or instance_id), and a frame_id "
                "(or frame_index) of its image"
            )
        category = categories.get(entry.get("category_id"))
        track = tracks.setdefault((video, object_id), _Track(int(object_id), category, []))
        track.seen.append(_Seen(int(number), entry.get("segmentation"), entry.get("bbox")))
    of_video: dict[Any, list[_Track]] = {}
    for (video, _), track in tracks.items():
        track.seen.sort(key=lambda seen: seen.number)
        of_video.setdefault(video, []).append(track)
    return of_video


def _categories(document: dict[str, Any]) -> dict[Any, str]:
    return {category["id"]: category["name"] for category in document.get("categories", [])}


def _name_of(video: dict[str, Any]) -> str:
    if video.get("file_names"):
        return str(PurePosixPath(video["file_names"][0]).parent)
    if "file_name" in video:
        return str(PurePosixPath(video["file_name"]).with_suffix(""))
    return str(video.get("name", video["id"]))


def _prompt_of(track: _Track, found: FoundVideo, kind: PromptKind) -> PromptRow | None:
    """The first frame on which the object is annotated; None if there is none."""
    for seen in track.seen:
        mask = _mask_of(seen.segmentation, track) if kind == "mask" else None
        box = _box_of(seen) if kind == "box" else None
        if mask is not None or box is not None:
            return {
                "object_id": track.object_id,
                "frame_index": found.frame_index(seen.number),
                "box": box,
                "mask": mask,
                "category": track.category,
            }
    return None


def _mask_of(segmentation: Any, track: _Track) -> Any:
    """None where nothing is annotated, or an empty mask."""
    from sam2model import rle

    if segmentation is None:
        return None
    if not isinstance(segmentation, dict):
        raise ManifestError(
            f"object {track.object_id}: polygons; wanted COCO run lengths. Polygons cannot be "
            "prompts: take the boxes, with --prompt box"
        )
    counts = segmentation["counts"]
    if not isinstance(counts, str):
        counts = rle.counts_to_string(counts)
    return {"size": segmentation["size"], "counts": counts} if rle.area(counts) else None


def _box_of(seen: _Seen) -> dict[str, float] | None:
    if seen.box_xywh_px is None:
        return None
    x, y, width, height = seen.box_xywh_px
    return {"x0": x, "y0": y, "x1": x + width, "y1": y + height} if width and height else None
