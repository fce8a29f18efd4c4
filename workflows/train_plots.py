"""How a training run went, as one page of plots. Knows nothing of networks."""

import json
from pathlib import Path

from workflows import plots

WINDOW = 25  # steps that one point of a loss's curve is the mean of
PAGE = "training.html"


def write_plots(output: Path) -> None:
    """Write the page from the logs beside it."""
    steps = _rows(output / "steps.jsonl")
    checks = _rows(output / "validation.jsonl")
    pictures = [
        plots.line(_smoothed(steps, name), name.replace("_", " "), "step", name)
        for name in (steps[0] if steps else {})
        if name != "step"
    ]
    pictures += [
        plots.line([(row["step"], row[name]) for row in checks], name, "step", "mean")
        for name in (checks[0] if checks else {})
        if name != "step"
    ]
    page = "<!doctype html><meta charset='utf-8'><title>Training</title>" + "".join(pictures)
    (output / PAGE).write_text(page)


def _rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _smoothed(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    parts = [rows[start : start + WINDOW] for start in range(0, len(rows), WINDOW)]
    return [(part[-1]["step"], sum(row[name] for row in part) / len(part)) for part in parts]
