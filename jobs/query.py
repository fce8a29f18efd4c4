"""Ask a dataset in SQL: masks, tracks, videos, runs, current_masks, current_tracks."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs._cli import Result, UsageError, job_parser, run
from jobs._labels import add_at_option

if TYPE_CHECKING:
    import pyarrow as pa

MASKS_PER_VIDEO = """
SELECT video_id, count(DISTINCT object_id) AS objects, count(DISTINCT frame_index) AS frames,
       count(*) AS masks, count(*) FILTER (area_px > 0) AS present,
       round(avg(object_score), 2) AS object_score
FROM current_masks GROUP BY video_id ORDER BY video_id
"""
WIDEST_CELL = 60  # characters; run lengths of a mask are hundreds
ROWS_SHOWN = 200


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("query", __doc__ or "")
    parser.add_argument(
        "sql", metavar="SQL", nargs="?", help="one SELECT; default: masks per video"
    )
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument(
        "--format",
        default="table",
        choices=["table", "csv", "jsonl", "parquet"],
        help="of the answer, default table",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the answer to a file")
    add_at_option(parser)
    return run(parser, query, argv)


def query(options: argparse.Namespace) -> Result:
    """Answer one SELECT, to standard output or a file."""
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.query import Dataset
    from workflows.storage import Storage

    if options.format == "parquet" and options.output is None:
        raise UsageError("maskmill query: --format parquet needs --output FILE")
    config = load_config(StorageOnlyConfig, options.config, options.overrides)
    dataset = Dataset(options.dataset, Storage(config.storage))
    answer = dataset.sql(options.sql or MASKS_PER_VIDEO, at=options.at)
    if options.output is None:
        sys.stdout.write(_text(answer, options.format))
    elif options.format == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(answer, options.output)
    else:
        options.output.write_text(_text(answer, options.format))
    summary: dict[str, object] = {"rows": answer.num_rows, "dataset_version": dataset.version}
    if options.output is not None:
        summary["output"] = str(options.output)
    return Result(summary)


def _text(answer: "pa.Table", kind: str) -> str:
    """The answer as lines of text; csv and jsonl whole, a table as far as one reads it."""
    if kind == "csv":
        import pyarrow.csv

        sink = pyarrow.BufferOutputStream()
        pyarrow.csv.write_csv(answer, sink)
        return str(sink.getvalue().to_pybytes().decode())
    if kind == "jsonl":
        lines = [json.dumps(row, default=str) for row in answer.to_pylist()]
        return "".join(line + "\n" for line in lines)
    return _table(answer)


def _table(answer: "pa.Table") -> str:
    names = list(answer.column_names)
    rows = [[_cell(row[name]) for name in names] for row in answer.slice(0, ROWS_SHOWN).to_pylist()]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=True)) for r in rows]
    header = "  ".join(f"{name:<{w}}" for name, w in zip(names, widths, strict=True))
    if answer.num_rows > ROWS_SHOWN:
        lines.append(f"… {answer.num_rows - ROWS_SHOWN} more rows; --output FILE has all")
    return "\n".join([header, "  ".join("-" * w for w in widths), *lines, ""])


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
