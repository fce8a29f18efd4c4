"""Small plots as SVG text: histogram, scatter, bars, line. Knows nothing of what they show.

Made by hand, so that a report is one file that needs nothing to be seen. Values stand beside the
marks where they fit; a plot's title is its accessible name. Text takes the page's own colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 46  # margins
MARK = "#2a6fb0"  # 5.2 to 1 against white, 3.5 to 1 against a dark page
FAINT = "#8884"
ROW = 24  # px of a bar in a list of bars
LABEL_WIDTH = 190


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from low to high over a span of pixels, which may run backwards."""

    low: float
    high: float
    start_px: float
    end_px: float
    counts: bool = False

    def px(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the scale, about so many; of things counted only whole ones."""
        step = nice_step((self.high - self.low) / count)
        step = max(step, 1.0) if self.counts else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def histogram(
    values: Sequence[float],
    title: str,
    x_label: str,
    low: float | None = None,
    high: float | None = None,
    bins: int = 20,
    y_label: str = "objects",
) -> str:
    """How many values lie in each of the equal bins from low to high (by default all of them).

    A value outside is counted in the bin at that end.
    """
    low = min(values, default=0.0) if low is None else low
    high = max(values, default=1.0) if high is None else high
    width = (high - low) or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(max(int((value - low) / width * bins), 0), bins - 1)] += 1
    return histogram_of_counts(counts, low, high, title, x_label, y_label)


def histogram_of_counts(
    counts: Sequence[int], low: float, high: float, title: str, x_label: str, y_label: str
) -> str:
    """What `histogram` draws, of values counted elsewhere in equal bins from low to high."""
    high = high if high > low else low + 1.0
    x, y = _axes(low, high, 0, max([1, *counts]), counts=True)
    width, step = (x.end_px - x.start_px) / len(counts), (high - low) / len(counts)
    marks = [
        f'<rect x="{x.start_px + n * width + 0.5:.1f}" y="{y.px(count):.1f}" '
        f'width="{width - 1:.1f}" height="{y.start_px - y.px(count):.1f}" fill="{MARK}">'
        f"<title>{number(low + n * step)} to {number(low + (n + 1) * step)}: {count}</title></rect>"
        for n, count in enumerate(counts)
        if count
    ]
    return _framed(title, x, y, x_label, y_label, marks)


def scatter(
    points: Sequence[tuple[float, float]],
    title: str,
    x_label: str,
    y_label: str,
    low: float = 0.0,
    high: float = 1.0,
) -> str:
    """A dot a point; both scales from low to high."""
    x, y = _axes(low, high, low, high)
    marks = [
        f'<circle cx="{x.px(a):.1f}" cy="{y.px(b):.1f}" r="3" fill="{MARK}" fill-opacity="0.5"/>'
        for a, b in points
    ]
    return _framed(title, x, y, x_label, y_label, marks)


def line(
    points: Sequence[tuple[float, float]],
    title: str,
    x_label: str,
    y_label: str,
    counts: bool = False,
) -> str:
    """Points joined in their order; the upright scale begins at 0. counts: upright are whole."""
    xs, ys = [a for a, _ in points] or [0.0], [b for _, b in points] or [0.0]
    x, y = _axes(min(xs), max(xs), 0, max(ys), counts)
    path = " ".join(f"{x.px(a):.1f},{y.px(b):.1f}" for a, b in points)
    marks = [f'<polyline points="{path}" fill="none" stroke="{MARK}" stroke-width="2"/>']
    marks += [
        f'<circle cx="{x.px(a):.1f}" cy="{y.px(b):.1f}" r="2.5" fill="{MARK}"/>'
        for a, b in points[:200]
    ]
    return _framed(title, x, y, x_label, y_label, marks)


def bars(
    rows: Sequence[tuple[str, float]], title: str, unit: str = "", most: float | None = None
) -> str:
    """A bar a row, with its name before and its value behind; from 0, which all values exceed.

    most: the value of a whole bar, by default the largest.
    """
    height = TOP + ROW * len(rows) + 10
    most = most or max([value for _, value in rows], default=0) or 1
    scale = Axis(0, most, LABEL_WIDTH, WIDTH - 80)
    marks = []
    for place, (name, value) in enumerate(rows):
        top = TOP + place * ROW
        marks.append(
            f'<text x="{LABEL_WIDTH - 6}" y="{top + 16}" text-anchor="end">'
            f"{escape(_shortened(name))}<title>{escape(name)}</title></text>"
            f'<rect x="{LABEL_WIDTH}" y="{top + 4}" height="{ROW - 8}" fill="{MARK}" '
            f'width="{max(scale.px(value) - LABEL_WIDTH, 1):.1f}"/>'
            f'<text x="{scale.px(value) + 5:.1f}" y="{top + 16}">{number(value)}'
            f"{escape(unit)}</text>"
        )
    return _svg(title, height, marks)


def number(value: float) -> str:
    """Three digits that count, and none behind the point that say nothing."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def nice_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not below."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _axes(
    x_low: float, x_high: float, y_low: float, y_high: float, counts: bool = False
) -> tuple[Axis, Axis]:
    x = Axis(x_low, x_high if x_high > x_low else x_low + 1, LEFT, WIDTH - RIGHT)
    y = Axis(y_low, y_high if y_high > y_low else y_low + 1, HEIGHT - BOTTOM, TOP, counts)
    return x, y


def _framed(title: str, x: Axis, y: Axis, x_label: str, y_label: str, marks: Sequence[str]) -> str:
    grid = []
    for tick in y.ticks():
        grid.append(
            f'<line x1="{x.start_px}" x2="{x.end_px}" y1="{y.px(tick):.1f}" y2="{y.px(tick):.1f}" '
            f'stroke="{FAINT}"/><text x="{LEFT - 6}" y="{y.px(tick) + 4:.1f}" text-anchor="end">'
            f"{number(tick)}</text>"
        )
    for tick in x.ticks():
        grid.append(
            f'<line x1="{x.px(tick):.1f}" x2="{x.px(tick):.1f}" y1="{y.start_px}" '
            f'y2="{y.start_px + 4}" stroke="currentColor"/>'
            f'<text x="{x.px(tick):.1f}" y="{y.start_px + 17}" text-anchor="middle">'
            f"{number(tick)}</text>"
        )
    axis = (
        f'<line x1="{x.start_px}" x2="{x.end_px}" y1="{y.start_px}" y2="{y.start_px}" '
        f'stroke="currentColor"/><text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return _svg(title, HEIGHT, [*grid, *marks, axis])


def _svg(title: str, height: float, marks: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12" '
        f'fill="currentColor"><title>{escape(title)}</title>'
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{escape(title)}</text>'
        f"{''.join(marks)}</svg>\n"
    )


def _shortened(text: str, longest: int = 26) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
