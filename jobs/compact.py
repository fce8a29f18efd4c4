"""Merge a dataset's small files and sort their rows, so that queries open few of them."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

from jobs._cli import Result, job_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("compact", __doc__ or "")
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument(
        "--keep-replaced-hours",
        metavar="HOURS",
        type=float,
        default=168.0,
        help="files of earlier versions, and drafts that somebody's commit has overtaken, are "
        "deleted when older than this, default a week",
    )
    return run(parser, compact, argv)


def compact(options: argparse.Namespace) -> Result:
    """Compact every table; readers and writers may go on meanwhile."""
    from workflows.compaction import compact as compact_dataset
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.query import Dataset
    from workflows.refine_drafts import DraftStore
    from workflows.storage import Storage

    config = load_config(StorageOnlyConfig, options.config, options.overrides)
    storage, hours = Storage(config.storage), options.keep_replaced_hours
    report = compact_dataset(storage, options.dataset, keep_replaced_hours=hours)
    drafts = DraftStore(storage, options.dataset)
    stale = drafts.discard_stale(Dataset(options.dataset, storage), timedelta(hours=hours))
    return Result({**asdict(report), "drafts_deleted": stale})


if __name__ == "__main__":
    sys.exit(main())
