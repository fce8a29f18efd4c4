"""Ask a dataset in SQL: masks, tracks, videos, refinements, runs, current_masks and _tracks."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from jobs._cli import Result, UsageError, job_parser, run
from jobs._labels import add_at_option

if TYPE_CHECKING:
    from workflows.storage import Storage

MASKS_PER_VIDEO = """
SELECT video_id, count(DISTINCT object_id) AS objects, count(DISTINCT frame_index) AS frames,
       count(*) AS masks, count(*) FILTER (area_px > 0) AS present,
       round(avg(object_score), 2) AS object_score
FROM current_masks GROUP BY video_id ORDER BY video_id
"""
FORMATS = ("table", "csv", "jsonl", "parquet")
TABLES = """
DESCRIBE current_masks (or masks, tracks, current_tracks, videos, runs) tells the columns; README.md
has questions to begin with. A statement that would write, or read anything else, is refused.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("query", __doc__ or "")
    parser.epilog = TABLES
    parser.add_argument(
        "sql", metavar="SQL", nargs="?", help="one SELECT; default: masks per video"
    )
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="of the answer; default: as the name of --output ends, else table",
    )
    parser.add_argument("--output", metavar="URI", help="write the answer to a file")
    add_at_option(parser)
    return run(parser, query, argv)


def query(options: argparse.Namespace) -> Result:
    """Answer one SELECT, to standard output or a file."""
    from workflows.answer_files import write_answer
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.query import Dataset
    from workflows.storage import Storage

    kind = options.format or _format_of(options.output)
    if kind == "parquet" and options.output is None:
        raise UsageError("maskmill query: --format parquet needs --output FILE")
    storage = Storage(load_config(StorageOnlyConfig, options.config, options.overrides).storage)
    dataset = Dataset(options.dataset, storage)
    sql = MASKS_PER_VIDEO if options.sql is None else options.sql
    with dataset.answer(sql, at=options.at) as answer, _opened(storage, options.output) as sink:
        num_rows = write_answer(answer, kind, sink)
    summary: dict[str, object] = {"rows": num_rows, "dataset_version": dataset.version}
    if options.output is not None:
        summary["output"] = options.output
    return Result(summary)


def _format_of(output: str | None) -> str:
    ending = (output or "").rpartition(".")[2].lower()
    return ending if ending in FORMATS else "table"


@contextmanager
def _opened(storage: "Storage", output: str | None) -> Iterator[IO[bytes]]:
    from workflows.large_files import write_large

    if output is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
    else:
        with write_large(storage, output) as sink:
            yield sink


if __name__ == "__main__":
    sys.exit(main())
