"""The records of a refinement as the API's JSON. Knows nothing of where they come from."""

import hashlib
from typing import Any

from workflows.refine_types import OpenVideo, RefinedFrame, RefinementResult
from workflows.rows import Track
from workflows.service_json import plain

TRACK_FIELDS = (
    *("object_id", "revision", "parent_revision", "source", "author", "category", "prompts"),
    *("first_frame", "last_frame", "frames_present", "object_score_mean", "object_score_min"),
    *("iou_pred_mean", "iou_pred_min", "stability_mean", "stability_min", "doubt", "flags"),
    *("review", "model_id", "created_at"),
)


def video_json(video: OpenVideo) -> dict[str, Any]:
    """A video and its tracks; `pictures` names the content of its frames, for caches."""
    facts = plain(video)
    facts["tracks"] = [track_json(track) for track in video.tracks]
    facts["pictures"] = pictures_of(video)
    return dict(facts)


def track_json(track: Track) -> dict[str, Any]:
    return {name: plain(getattr(track, name)) for name in TRACK_FIELDS}


def pictures_of(video: OpenVideo) -> str:
    """Another name where the file at the URI is another by its size or length."""
    content = (video.video_uri, video.num_frames, video.height, video.width, video.duration_s)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def frame_json(frame: RefinedFrame, with_counts: bool = True) -> dict[str, Any]:
    """with_counts false: without the run lengths, for whoever wants the scores only."""
    return {
        "frame_index": frame.frame_index,
        "pts_s": plain(frame.pts_s),
        "height": frame.height,
        "width": frame.width,
        "masks": [
            {
                "object_id": mask.object_id,
                "counts": mask.counts if with_counts else None,
                "area_px": mask.area_px,
                "box": plain(mask.box),
                "object_score": plain(mask.object_score),
                "iou_pred": plain(mask.iou_pred),
                "stability": plain(mask.stability),
                "is_prompt": mask.is_prompt,
            }
            for mask in frame.masks
        ],
        "sequence": frame.sequence,
    }


def step_json(step: RefinedFrame | RefinementResult) -> dict[str, Any]:
    """A line of a refinement's answer."""
    if isinstance(step, RefinementResult):
        return {"result": plain(step)}
    return {"frame": frame_json(step)}
