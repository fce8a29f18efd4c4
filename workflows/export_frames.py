"""Frames of a labelled video as JPEG files beside its labels. Knows nothing of formats or masks."""

import io

from PIL import Image

from sam2model.video import Video
from workflows.export_format import Common, ExportError, ExportFormat, Output
from workflows.labelled_videos import LabelledVideo
from workflows.storage import Storage


def write_frames(
    video: LabelledVideo,
    folder: str,
    export_format: ExportFormat,
    common: Common,
    storage: Storage,
    output: Output,
    jpeg_quality: int,
) -> None:
    """Put the frames that the labels name, one at a time, where the format's readers look.

    Raises ExportError if the video is not the one that was labelled, VideoError if it is damaged
    before its last labelled frame, and as Storage does.
    """
    with (
        storage.open_video(video.video_uri) as source,
        Video(source, name=video.video_uri) as opened,
    ):
        size = opened.info.height, opened.info.width
        if size != (video.height, video.width):
            raise ExportError(
                f"{video.video_uri}: {size[0]}×{size[1]} (rows × columns); wanted the masks' "
                f"{video.height}×{video.width}"
            )
        num_frames = 0
        for frame in opened.frames(0, video.num_frames):
            num_frames += 1
            if frame.index % common.every == 0:
                path = export_format.frame_path(folder, frame.index, common)
                output.put(path, _jpeg(Image.fromarray(frame.rgb), jpeg_quality))
        if num_frames < video.num_frames:
            raise ExportError(
                f"{video.video_uri}: {num_frames} frames; wanted the {video.num_frames} labelled"
            )


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
