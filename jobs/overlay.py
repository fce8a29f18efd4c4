"""Draw masks, ids, scores and prompts on a video or a contact sheet, layers side by side."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli import Result, UsageError, job_parser, run

if TYPE_CHECKING:
    from workflows.overlay import Panel
    from workflows.query import Dataset

LAYERS = """
A layer is current; corrected: what a person made, corrected or accepted; auto: what the model made;
a revision number; or an ISO time (UTC unless it says). A correction beside what it corrected:
--layer auto --layer current.
"""
SHEET = ".png"
SUFFIXES = (".mp4", ".webm", SHEET)


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("overlay", __doc__ or "")
    parser.epilog = LAYERS
    parser.add_argument("video_id", metavar="VIDEO_ID", help="a video of the dataset")
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument(
        "--output",
        metavar="URI",
        required=True,
        help=".mp4 or .webm: a video; .png: a contact sheet",
    )
    parser.add_argument(
        "--layer",
        dest="layers",
        action="append",
        help="what to draw, see below; repeated: side by side; default current",
    )
    parser.add_argument(
        "--start", type=int, default=0, metavar="FRAME", help="first frame, default 0"
    )
    parser.add_argument(
        "--stop", type=int, metavar="FRAME", help="the frame after the last; default: to the end"
    )
    parser.add_argument(
        "--height", type=int, metavar="PX", help="of one picture; videos: as is, sheets: 240"
    )
    parser.add_argument(
        "--frames", type=int, default=12, metavar="N", help="of a sheet, default 12"
    )
    parser.add_argument("--columns", type=int, default=4, metavar="N", help="of a sheet, default 4")
    parser.add_argument(
        "--video-uri", metavar="URI", help="where the video lies now; default: as labelled"
    )
    return run(parser, overlay, argv)


def overlay(options: argparse.Namespace) -> Result:
    """Read the layers' masks, decode the video, draw."""
    from sam2model.video import Video
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.large_files import write_at
    from workflows.overlay import sheet_frames, write_contact_sheet, write_overlay
    from workflows.query import Dataset
    from workflows.storage import Storage

    _check(options)
    storage = Storage(load_config(StorageOnlyConfig, options.config, options.overrides).storage)
    dataset = Dataset(options.dataset, storage)
    uri = options.video_uri or dataset.video(options.video_id)["video_uri"]
    span = (options.start, 2**31 - 1 if options.stop is None else options.stop - 1)
    panels = [
        _panel(dataset, options.video_id, layer, span) for layer in options.layers or ["current"]
    ]
    with (
        storage.open_video(uri) as source,
        Video(source, name=uri) as video,
        write_at(storage, options.output) as path,
    ):
        if path.suffix == SHEET:
            shown = sheet_frames(panels, options.frames)
            write_contact_sheet(
                video,
                panels,
                path,
                shown,
                columns=options.columns,
                picture_height_px=options.height or 240,
            )
            frames = len(shown)
        else:
            frames = write_overlay(
                video,
                panels,
                path,
                start=options.start,
                stop=options.stop,
                picture_height_px=options.height,
            )
    summary = {"output": options.output, "frames": frames, "layers": [p.title for p in panels]}
    return Result(summary)


def _check(options: argparse.Namespace) -> None:
    if not options.output.endswith(SUFFIXES):
        raise UsageError(
            f"maskmill overlay: --output {options.output}: wanted {', '.join(SUFFIXES)}"
        )
    for name, lowest in (("start", 0), ("frames", 1), ("columns", 1), ("height", 16)):
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise UsageError(f"maskmill overlay: --{name} {value}: wanted {lowest} or more")
    if options.stop is not None and options.stop <= options.start:
        raise UsageError(
            f"maskmill overlay: --stop {options.stop}: wanted more than --start {options.start}"
        )


def _panel(dataset: "Dataset", video_id: str, layer: str, frames: tuple[int, int]) -> "Panel":
    from workflows.mask_views import DatasetMasks, parse_view
    from workflows.overlay import Panel
    from workflows.prompt_rows import decode_prompts

    view = parse_view(layer)
    if view is None:
        raise UsageError(
            f"maskmill overlay: --layer {layer}: wanted current, corrected, auto, a revision "
            "number or an ISO time"
        )
    masks = DatasetMasks(dataset, view)
    if video_id not in masks:
        raise UsageError(f"maskmill overlay: {video_id} has no masks in layer {layer}")
    tracks = masks.tracks(video_id)
    first, last = frames
    prompts = [
        prompt
        for track in tracks
        for prompt in decode_prompts(track.prompts)
        if first <= prompt.frame_index <= last
    ]
    return Panel.from_rows(
        view.title,
        masks.rows(video_id, frames),
        prompts,
        {track.object_id: track.category or "" for track in tracks},
    )


if __name__ == "__main__":
    sys.exit(main())
