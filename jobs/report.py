"""Report on a dataset or one run: progress, speed, cost, failures, scores, the worst tracks."""

import argparse
import json
import sys
from collections.abc import Sequence

from jobs._cli import Result, UsageError, job_parser, run

WORST_TRACKS = 24


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("report", __doc__ or "")
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument("--run", metavar="ID", help="of this run only; default: of the dataset")
    parser.add_argument(
        "--output",
        metavar="URI",
        default="report.html",
        help="one self-contained page, and the numbers beside it as .json; default report.html",
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=WORST_TRACKS,
        metavar="N",
        help=f"most doubtful tracks listed with a picture, default {WORST_TRACKS}",
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="open no videos: tracks without pictures"
    )
    return run(parser, report, argv)


def report(options: argparse.Namespace) -> Result:
    """Count, draw, write the page and the numbers."""
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.query import Dataset
    from workflows.report import gather, worst_tracks
    from workflows.report_page import render
    from workflows.report_thumbnails import thumbnails
    from workflows.storage import Storage

    if not options.output.endswith(".html"):
        raise UsageError(f"maskmill report: --output {options.output}: wanted a name in .html")
    if options.worst < 0:
        raise UsageError(f"maskmill report: --worst {options.worst}: wanted 0 or more")
    storage = Storage(load_config(StorageOnlyConfig, options.config, options.overrides).storage)
    dataset = Dataset(options.dataset, storage)
    numbers = gather(dataset, options.run)
    worst = worst_tracks(dataset, options.worst, options.run)
    pictures = {} if options.no_pictures else thumbnails(dataset, worst)
    values = options.output.removesuffix(".html") + ".json"
    document = json.dumps({**numbers, "worst": worst}, indent=1, allow_nan=False)
    page = render(numbers, worst, pictures)
    storage.put(values, document.encode())
    storage.put(options.output, page.encode())
    progress = numbers["progress"]
    return Result(
        {
            "output": options.output,
            "numbers": values,
            "pictures": len(pictures),
            **{name: progress[name] for name in ("videos_ok", "videos_failed", "objects")},
            "frames_per_s": numbers["totals"]["frames_per_s"],
            "cost_per_video_hour": numbers["totals"]["cost_per_video_hour"],
        }
    )


if __name__ == "__main__":
    sys.exit(main())
