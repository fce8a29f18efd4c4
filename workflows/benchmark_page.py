"""A result of `maskmill bench` as a page of Markdown. Knows nothing of how anything is measured."""

import json
from collections.abc import Mapping, Sequence

from workflows.benchmark import SUITES
from workflows.benchmark_config import BenchConfig, Row, SuiteName
from workflows.config import to_tree


def page_of(machine: Row, config: BenchConfig, tables: Mapping[SuiteName, list[Row]]) -> str:
    """The machine, the command that repeats it, and a table for each suite."""
    tree = to_tree(config)
    blocks = ["# Benchmark results", _table([machine]), f"```\n{command_of(config)}\n```"]
    for name, rows in tables.items():
        blocks += [f"## {SUITES[name].title.format_map(tree)}", _table(rows)]
    return "\n\n".join(blocks) + "\n"


def command_of(config: BenchConfig) -> str:
    """The command line with every key that is not at its default."""
    defaults = to_tree(BenchConfig())
    changed = {key: v for key, v in to_tree(config).items() if v != defaults[key]}
    options = [f"--set '{key}={json.dumps(value)}'" for key, value in changed.items()]
    return " \\\n  ".join(["maskmill bench", *options])


def _table(rows: Sequence[Row]) -> str:
    """Columns in the order in which rows name them; a row without one leaves it empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
