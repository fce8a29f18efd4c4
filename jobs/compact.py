"""Merge a dataset's small files and sort their rows, so that queries open few of them."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from jobs._cli import Result, job_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("compact", __doc__ or "")
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument(
        "--keep-replaced-hours",
        metavar="HOURS",
        type=float,
        default=168.0,
        help="files of earlier versions are deleted when older than this, default a week",
    )
    return run(parser, compact, argv)


def compact(options: argparse.Namespace) -> Result:
    """Compact every table; readers and writers may go on meanwhile."""
    from workflows.compaction import compact as compact_dataset
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.storage import Storage

    config = load_config(StorageOnlyConfig, options.config, options.overrides)
    report = compact_dataset(
        Storage(config.storage),
        options.dataset,
        keep_replaced_hours=options.keep_replaced_hours,
    )
    return Result(asdict(report))


if __name__ == "__main__":
    sys.exit(main())
