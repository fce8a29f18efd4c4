"""The columns of manifest and dataset, as Arrow. Knows nothing of what is done with them.

Coordinates are source pixels after rotation, x right and y down; frames are counted from 0.
Every column may be null as far as Arrow is concerned; rows.py says what must be there.
"""

import pyarrow as pa

from workflows.prompt_rows import BOX, PROMPT

TIMESTAMP = pa.timestamp("us", tz="UTC")  # Delta Lake knows microseconds only
FLAG = pa.struct([("frame_index", pa.int32()), ("kind", pa.string()), ("doubt", pa.float32())])

MANIFEST_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("video_uri", pa.string()),
        ("prompts", pa.list_(PROMPT)),
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),  # inclusive
        ("priority", pa.int32()),
        ("tags", pa.map_(pa.string(), pa.string())),
    ]
)
# a row per (object, frame) of the labelled span; absent = area 0, box null
MASKS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("object_id", pa.int32()),
        ("frame_index", pa.int32()),
        ("pts_s", pa.float64()),
        ("revision", pa.int32()),
        ("counts", pa.string()),  # COCO compressed run lengths
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("area_px", pa.int32()),
        ("box", BOX),
        ("object_score", pa.float32()),
        ("iou_pred", pa.float32()),
        ("stability", pa.float32()),
        ("is_prompt", pa.bool_()),
    ]
)
# how a refinement came to its masks; null elsewhere
REFINEMENT = pa.struct(
    [
        ("request_id", pa.string()),  # the same one is committed once
        ("base_revision", pa.int32()),  # the video's newest when the person looked
        ("first_frame", pa.int32()),  # computed again from here …
        ("last_frame", pa.int32()),  # … to here, both included; the others are the parent's
        # where the masks agreed with the base's and computing stopped: at most one on either side
        ("converged_frames", pa.list_(pa.int32())),
    ]
)
# a row per (video, object, revision)
TRACKS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("object_id", pa.int32()),
        ("revision", pa.int32()),
        ("parent_revision", pa.int32()),  # this object's revision before; null for its first
        ("masks_revision", pa.int32()),  # whose mask rows it shows: older when only reviewed
        ("source", pa.string()),  # a Source
        ("author", pa.string()),
        ("category", pa.string()),
        ("prompts", pa.list_(PROMPT)),
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),
        ("frames_present", pa.int32()),
        ("object_score_mean", pa.float32()),
        ("object_score_min", pa.float32()),
        ("iou_pred_mean", pa.float32()),
        ("iou_pred_min", pa.float32()),
        ("stability_mean", pa.float32()),
        ("stability_min", pa.float32()),
        ("doubt", pa.float32()),
        ("flags", pa.list_(FLAG)),
        ("review", pa.string()),  # a Review
        ("removed", pa.bool_()),  # taken out of the labels: no view shows it, and it has no masks
        ("refinement", REFINEMENT),
        ("model_id", pa.string()),
        ("model_sha256", pa.string()),
        ("config_hash", pa.string()),
        ("fingerprint", pa.string()),
        ("run_id", pa.string()),
        ("created_at", TIMESTAMP),  # when it was committed
    ]
)
# a row per attempt at a video
VIDEOS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("request_id", pa.string()),  # of a refinement in a batch; null: an attempt at labelling
        ("video_uri", pa.string()),
        ("fingerprint", pa.string()),
        ("status", pa.string()),  # a Status
        ("reason", pa.string()),  # a FailureReason; null when ok
        ("detail", pa.string()),
        ("num_frames_header", pa.int32()),
        ("num_frames_decoded", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation_deg", pa.int32()),
        ("duration_s", pa.float64()),
        ("objects", pa.int32()),
        ("seconds_by_stage", pa.map_(pa.string(), pa.float64())),
        ("peak_memory_bytes", pa.int64()),
        ("peak_device_memory_bytes", pa.int64()),
        ("hardware", pa.string()),
        ("run_id", pa.string()),
        ("code_version", pa.string()),
        ("finished_at", TIMESTAMP),
    ]
)
# a row per job
RUNS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("job", pa.string()),
        ("started_at", TIMESTAMP),
        ("finished_at", TIMESTAMP),
        ("config", pa.string()),  # as resolved, JSON
        ("manifest_uri", pa.string()),
        ("code_version", pa.string()),
        ("hardware", pa.string()),
        ("videos_requested", pa.int64()),
        ("videos_skipped", pa.int64()),  # finished by an earlier run
        ("videos_ok", pa.int64()),
        ("videos_failed", pa.int64()),
        ("failures", pa.map_(pa.string(), pa.int64())),  # by FailureReason
        ("frames", pa.int64()),
        ("object_frames", pa.int64()),
        ("video_s", pa.float64()),
        ("wall_s", pa.float64()),
        ("device_s", pa.float64()),
        ("device_idle_share", pa.float64()),  # of device_s, 0 to 1
        ("seconds_by_stage", pa.map_(pa.string(), pa.float64())),  # of all videos together
        ("peak_memory_bytes", pa.int64()),  # of the actor that had most
        ("peak_device_memory_bytes", pa.int64()),
        ("cost", pa.float64()),
        ("cost_per_video_hour", pa.float64()),
        ("cost_per_1000_frames", pa.float64()),
        ("currency", pa.string()),
    ]
)
MASK_OBJECT = pa.struct(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("num_rows", pa.int64()),
        ("stats", pa.string()),
    ]
)
# what travels from an actor to the driver: a row per video
OUTCOMES_SCHEMA = pa.schema(
    [*VIDEOS_SCHEMA, ("tracks", pa.list_(pa.struct(TRACKS_SCHEMA))), ("mask_object", MASK_OBJECT)]
)
