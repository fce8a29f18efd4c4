"""Masks of COCO JSON: YouTube-VIS, or images with videos and tracks. Opens no pictures.

The document is held whole. A frame that it lists and an object is not annotated on is an empty mask
there: absent. Frames that it does not list say nothing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from sam2model import rle
from workflows.mask_sources import MaskSourceError, Rle, VideoMasks

Json = dict[str, Any]


class CocoMasks(Mapping[str, VideoMasks]):
    """Videos by name: `name`, else the folder of their frames, else the number.

    Objects by `object_id`, `track_id` or `instance_id`, else by the annotation's own id. A frame is
    the image's `frame_id` or `frame_index`, in YouTube-VIS the number in its file's name.
    Raises MaskSourceError for a document of another form.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        try:
            document = json.loads(data)
            videos = {video["id"]: video for video in document["videos"]}
            self._categories = {c["id"]: c["name"] for c in document.get("categories", [])}
            self._ids = {_name_of(video): video_id for video_id, video in videos.items()}
            self._sizes = {
                v: (video.get("height"), video.get("width")) for v, video in videos.items()
            }
            self._frames: dict[Any, list[int]] = {video_id: [] for video_id in videos}
            self._annotations: dict[Any, list[Json]] = {video_id: [] for video_id in videos}
            if "images" in document:
                self._group_images(document)
            else:
                self._group_tracks(document)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise MaskSourceError(
                f"{name}: {type(error).__name__}: {error}; wanted YouTube-VIS, or COCO with videos"
            ) from error
        if len(self._ids) != len(videos):
            raise MaskSourceError(f"{name}: two videos have one name")

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, video: object) -> bool:
        return video in self._ids

    def __getitem__(self, video: str) -> VideoMasks:
        """Raises MaskSourceError, naming the annotation, for what are no run lengths."""
        video_id = self._ids[video]
        frames = self._frames[video_id]
        masks: dict[int, dict[int, Rle]] = {}
        for annotation in self._annotations[video_id]:
            seen = masks.setdefault(_object_of(annotation), {})
            for frame, segmentation in annotation["seen"]:
                if segmentation is not None:
                    if frame in seen:
                        raise MaskSourceError(
                            f"{self.name}: {video}: object {_object_of(annotation)} has two masks "
                            f"on frame {frame}"
                        )
                    seen[frame] = self._rle(segmentation, annotation)
        sizes = {(mask.height, mask.width) for seen in masks.values() for mask in seen.values()}
        height, width = sizes.pop() if sizes else self._sizes[video_id]
        return {
            object_id: {frame: seen.get(frame) or Rle.empty(height, width) for frame in frames}
            for object_id, seen in sorted(masks.items())
        }

    def categories(self, video: str) -> dict[int, str]:
        """object_id → category, where the document names one."""
        return {
            _object_of(annotation): self._categories[annotation["category_id"]]
            for annotation in self._annotations[self._ids[video]]
            if annotation.get("category_id") in self._categories
        }

    def _group_tracks(self, document: Json) -> None:
        for video in document["videos"]:
            names = video["file_names"]
            self._frames[video["id"]] = [int(PurePosixPath(name).stem) for name in names]
        for annotation in document["annotations"]:
            frames = self._frames[annotation["video_id"]]
            seen = list(zip(frames, annotation.pop("segmentations"), strict=True))
            self._annotations[annotation["video_id"]].append({**annotation, "seen": seen})

    def _group_images(self, document: Json) -> None:
        places = {}
        for image in document["images"]:
            frame = image["frame_id"] if "frame_id" in image else image["frame_index"]
            places[image["id"]] = image["video_id"], frame
            self._sizes[image["video_id"]] = image["height"], image["width"]
        for video_id, frame in sorted(places.values(), key=lambda place: place[1]):
            self._frames[video_id].append(frame)
        for annotation in document["annotations"]:
            video_id, frame = places[annotation["image_id"]]
            seen = [(frame, annotation.pop("segmentation"))]
            self._annotations[video_id].append({**annotation, "seen": seen})

    def _rle(self, segmentation: Any, annotation: Json) -> Rle:
        where = f"{self.name}: annotation {annotation.get('id')}"
        if not isinstance(segmentation, dict):
            raise MaskSourceError(f"{where}: polygons; wanted run lengths {{size, counts}}")
        counts = segmentation["counts"]
        if not isinstance(counts, str):
            try:
                counts = rle.counts_to_string(counts)
            except rle.RleError as error:
                raise MaskSourceError(f"{where}: {error}") from error
        height, width = segmentation["size"]
        return Rle(counts, height, width)


def _object_of(annotation: Json) -> int:
    for key in ("object_id", "track_id", "instance_id", "id"):
        if annotation.get(key) is not None:
            return int(annotation[key])
    raise MaskSourceError(f"an annotation without an id; it has {sorted(annotation)}")


def _name_of(video: Json) -> str:
    if "name" in video:
        return str(video["name"])
    if video.get("file_names"):
        return str(PurePosixPath(video["file_names"][0]).parent)
    return str(video["id"])
