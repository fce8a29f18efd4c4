"""Measure this machine: our model beside transformers' and Meta's, and every part of a job.

The references get the same weights, frames and prompts and take turns with ours; ratios are what
counts, since machines differ and are busy. The last line of stdout is the result as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs._cli import Result, job_parser, run
from workflows.benchmark import SUITES
from workflows.benchmark_config import BenchConfig, Row, SuiteName
from workflows.benchmark_machine import machine
from workflows.benchmark_page import page_of
from workflows.config import load_config, to_tree


def main(argv: Sequence[str] | None = None) -> int:
    return run(job_parser("bench", (__doc__ or "").partition("\n")[0]), bench, argv)


def bench(options: argparse.Namespace) -> Result:
    """Run the suites of the configuration, printing each row as it is known."""
    config = load_config(BenchConfig, options.config, options.overrides)
    folder = Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    facts = machine(config)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    tables: dict[SuiteName, list[Row]] = {
        name: _print_table(name, config) for name in config.suites
    }
    path = folder / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"
    result: dict[str, object] = {"machine": facts, "config": to_tree(config)}
    result.update(tables.items())
    path.write_text(json.dumps(result, indent=2) + "\n")
    path.with_suffix(".md").write_text(page_of(facts, config, tables))
    return Result(result | {"kept_in": str(path)})


def _print_table(name: SuiteName, config: BenchConfig) -> list[Row]:
    """Measure one suite; its title, a line of columns, and each row when it is there."""
    suite = SUITES[name]
    print(f"\n{suite.title.format_map(to_tree(config))}", flush=True)
    rows: list[Row] = []
    widths: list[int] = []
    for row in suite.measure(config):
        if not rows:
            widths = [max(len(column), _width(value)) for column, value in row.items()]
            print("  ".join(_cell(c, w, row[c]) for c, w in zip(row, widths, strict=True)))
        cells = (_cell(value, w, value) for value, w in zip(row.values(), widths, strict=True))
        print("  ".join(cells), flush=True)
        rows.append(row)
    return rows


def _width(value: float | int | str) -> int:
    """Of a column by its first value: words of later rows may be longer."""
    return 28 if isinstance(value, str) else len(str(value))


def _cell(value: float | int | str, width: int, like: float | int | str) -> str:
    """Words to the left, numbers to the right."""
    return str(value).ljust(width) if isinstance(like, str) else str(value).rjust(width)


if __name__ == "__main__":
    sys.exit(main())
