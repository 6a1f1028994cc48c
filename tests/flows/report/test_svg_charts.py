"""The report's charts: marks stand where their numbers say, ticks are round, odd data can be drawn."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from flows.report.svg_charts import Bar, Series, bar_chart, line_chart, nice_ticks, smooth, standalone, thin


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 0.61, [0, 0.2, 0.4, 0.6, 0.8]), (1, 400, [0, 100, 200, 300, 400])],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: list[float]) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1 and str(steps.pop()).strip("0.") in ("1", "2", "25", "5")
    assert ticks == pytest.approx(expected)


def test_ticks_of_an_empty_range() -> None:
    assert nice_ticks(3.0, 3.0) == [3.0, 4.0]
    assert len(nice_ticks(0.0, math.inf)) == 2


def test_thinning_and_smoothing_keep_the_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(700)]
    few = thin(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few) / 100 == pytest.approx(3.0)
    smoothed = smooth(points)
    assert len(smoothed) == 700
    assert all(y == pytest.approx(3.0, abs=0.4) for _, y in smoothed)
    assert thin([]) == () and smooth([]) == ()


def test_bars_and_lines_stand_where_their_numbers_say() -> None:
    svg = ET.fromstring(bar_chart("t", "d", [Bar("a", 0.25), Bar("b", 0.5, 0.4, 0.6)], x_range=(0, 1)))
    widths = [float(element.get("width", 0)) for element in svg.iter() if element.tag.endswith("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    whisker = next(e for e in svg.iter() if e.get("class") == "whisker")
    assert float(whisker.get("x2", 0)) - float(whisker.get("x1", 0)) == pytest.approx(
        widths[1] * 0.4, abs=0.2
    )

    chart = line_chart("t", "d", [Series("l", ((1.0, 0.0), (2.0, math.nan), (3.0, 2.0)))], "x", "y")
    points = next(e for e in ET.fromstring(chart).iter() if e.tag.endswith("polyline")).get("points", "")
    assert len(points.split()) == 2 and "nan" not in chart


def test_one_point_and_constant_series_can_be_drawn() -> None:
    for points in (((1.0, 0.0),), ((1.0, 0.5), (2.0, 0.5)), ((5.0, 0.0), (6.0, 0.0))):
        ET.fromstring(standalone(line_chart("t", "d", [Series("l", points)], "x", "y")))
    ET.fromstring(bar_chart("t", "d", [Bar("zero", 0.0)]))


def test_ticks_of_a_short_axis_do_not_overlap() -> None:
    def ticks(label: str) -> list[str]:
        text = bar_chart("t", "d", [Bar(label, 0.31)], x_range=(0, 1))
        return [found for found in re.findall(r">([^<]* %)<", text) if found != "31.0 %"]

    assert ticks("BM25") == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert ticks("Previous post by another author") == ["0 %", "50 %", "100 %"]
