"""Plots are well-formed, say what they show in words, and put marks where values are."""

import math
from xml.etree import ElementTree

import pytest

from workflows.plots import Axis, bars, histogram, line, nice_step, number, scatter

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == SVG + "svg" and root.get("role") == "img"
    return root


def test_a_histogram_counts_each_value_once_ends_included() -> None:
    root = parse(histogram([0, 0.04, 0.5, 1, 1.7], "scores <&>", "J&F", low=0, high=1, bins=10))
    counts = [str(rect.findtext(SVG + "title")) for rect in root.iter(SVG + "rect")]
    assert counts == ["0 to 0.1: 2", "0.5 to 0.6: 1", "0.9 to 1: 2"]
    assert root.findtext(SVG + "title") == "scores <&>"
    heights = [float(rect.get("height", 0)) for rect in root.iter(SVG + "rect")]
    assert heights[0] == pytest.approx(2 * heights[1])


def test_dots_lie_where_their_values_are() -> None:
    root = parse(scatter([(0, 0), (1, 1), (0.5, 0.25)], "t", "x", "y"))
    (x0, y0), (x1, y1), (x2, y2) = [
        (float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.iter(SVG + "circle")
    ]
    assert x0 < x1 and y0 > y1
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.1)
    assert y2 == pytest.approx(y0 + (y1 - y0) / 4, abs=0.1)


def test_bars_are_named_in_full_and_as_long_as_their_values() -> None:
    root = parse(bars([("a" * 80, 2.0), ("b", 1.0)], "t", " s"))
    long, short = [float(rect.get("width", 0)) for rect in root.iter(SVG + "rect")]
    assert long == pytest.approx(2 * short)
    assert "a" * 80 in [title.text for title in root.iter(SVG + "title")]
    assert "2 s" in [text.text for text in root.iter(SVG + "text")]
    (half,) = parse(bars([("a", 0.5)], "t", most=1.0)).iter(SVG + "rect")
    assert float(half.get("width", 0)) == pytest.approx(long / 2), "a poor score is a short bar"


@pytest.mark.parametrize(
    "svg",
    [
        histogram([], "t", "x"),
        histogram([3.0], "t", "x"),
        scatter([], "t", "x", "y"),
        line([], "t", "x", "y"),
        line([(1, 0)], "t", "x", "y"),
        bars([], "t"),
        bars([("a", 0.0)], "t"),
    ],
)
def test_little_data_makes_a_plot_too(svg: str) -> None:
    parse(svg)
    assert "nan" not in svg and "inf" not in svg


def test_ticks_are_round_and_within() -> None:
    assert Axis(0, 1, 0, 100).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Axis(0, 7, 0, 100).ticks() == [0, 2, 4, 6]
    assert Axis(0, 2, 0, 100, counts=True).ticks() == [0, 1, 2], "no half of an object"
    assert [nice_step(x) for x in (1, 1.5, 3, 7, 0.012)] == pytest.approx([1, 2, 5, 10, 0.02])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (1234567, "1,234,567"),
        (0.01234, "0.0123"),
        (99.96, "100"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
    assert number(math.nan) == "–"
