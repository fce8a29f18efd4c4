"""Write a dataset's labels in the files of other tools; a second run does what changed."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs._cli import ALL_DONE, FINISHED_WITH_FAILURES, Result, UsageError, job_parser, run
from jobs._labels import add_selection_options, selection_of, with_progress

if TYPE_CHECKING:
    from workflows.export import ExportPlan, VideoResult
    from workflows.labelled_videos import VideoObjects

FORMATS = """
formats: coco (an image a frame), ytvis, davis, mose, sav, mots, yolo-seg, cvat, label-studio. Where
masks overlap and the format gives each pixel to one object (davis, mose, mots), the object with the
lowest id has it. What a format cannot hold is counted and stands in OUTPUT/export.json.
options of formats: ytvis content=truth|results counts=numbers|string; davis resolution=480p;
sav masklets=manual|auto strict=true|false; mots first_frame=0|1; label-studio content=video|image
root_url=URL.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all exported, 3 some videos failed."""
    parser = job_parser("export", __doc__ or "")
    parser.epilog = FORMATS
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument("--output", metavar="URI", required=True, help="folder to write to")
    parser.add_argument("--format", required=True, metavar="NAME", help="see below")
    parser.add_argument(
        "--option",
        dest="format_options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of the format, see below; may be repeated",
    )
    add_selection_options(parser)
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="write every N-th frame, default 1"
    )
    parser.add_argument(
        "--frames",
        choices=["references", "jpeg"],
        default="references",
        help="name the pictures only (default), or write them too",
    )
    parser.add_argument(
        "--jpeg-quality",
        type=int,
        default=95,
        metavar="N",
        help="of --frames jpeg, 1 to 100, default 95",
    )
    parser.add_argument(
        "--split", default="train", help="name of the part of a dataset this is, default train"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="videos at once on a Ray cluster; default 0: one after the other, here",
    )
    return run(parser, export, argv)


def export(options: argparse.Namespace) -> Result:
    """Export what changed, then the files about all videos."""
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.export import finish_export, plan_export
    from workflows.export_formats import make_format
    from workflows.query import Dataset
    from workflows.storage import Storage

    for name, lowest in (("every", 1), ("jpeg_quality", 1), ("workers", 0)):
        if getattr(options, name) < lowest:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {getattr(options, name)}: wanted {lowest} or more")
    if options.jpeg_quality > 100:
        raise UsageError(f"--jpeg-quality {options.jpeg_quality}: wanted 1 to 100")
    config = load_config(StorageOnlyConfig, options.config, options.overrides)
    plan, videos = plan_export(
        Dataset(options.dataset, Storage(config.storage)),
        options.output,
        make_format(options.format, options.format_options),
        selection_of(options),
        every=options.every,
        split=options.split,
        frames=options.frames,
        jpeg_quality=options.jpeg_quality,
    )
    results = _results(plan, videos, options.workers)
    summary = finish_export(
        plan, videos, list(with_progress(results, len(videos), "videos"))
    ).as_json()
    code = FINISHED_WITH_FAILURES if summary["videos_failed"] else ALL_DONE
    return Result({"output": options.output, **summary}, code)


def _results(
    plan: "ExportPlan", videos: "list[VideoObjects]", workers: int
) -> "Iterator[VideoResult]":
    from workflows.export import export_videos

    if not workers:
        yield from export_videos(plan, videos)
        return
    from workflows.export_on_ray import export_on_ray
    from workflows.ray_session import connected

    with connected():
        yield from export_on_ray(plan, videos, workers)


if __name__ == "__main__":
    sys.exit(main())
