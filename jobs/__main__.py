"""`maskmill NAME …`, the same as `python -m jobs.NAME …`. Knows the jobs by their files only.

A job is a module of this package with `main(argv) -> int`; its docstring's first line is its
help. Only the job that runs is imported: `maskmill --help` needs neither torch nor Ray.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs._cli import ALL_DONE, UsageError, guarded, unknown_choice


def commands() -> dict[str, str]:
    """Name → one line of help, read from the sources without importing them."""
    folder = Path(__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]))
    return {name: _first_line(folder / f"{name}.py") for name in names if not name.startswith("_")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job by name; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(_usage())
        return ALL_DONE
    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words:
        print(_usage(), file=sys.stderr)
        raise UsageError("no command given")
    known = commands()
    name, *argv = words
    if name not in known:
        raise UsageError(f"unknown command {unknown_choice(name, list(known))}")
    code: int = importlib.import_module(f"jobs.{name}").main(argv)
    return code


def _usage() -> str:
    known = commands()
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {purpose}" for name, purpose in known.items()]
    return "\n".join(
        ["usage: maskmill NAME [options]", "", *lines, "", "maskmill NAME --help explains one."]
    )


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
