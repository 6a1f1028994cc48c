"""Draw small accessible charts as SVG text: lines, bars with intervals, and a layered graph.

Each chart function is pure and returns one `<svg>` element with a fixed inner width, which scales with its
container. Colours are classes, which `STYLE` defines once for light and dark pages. Charts in a page share
the style sheet of the page, and `standalone` adds the style sheet to a separate chart, such as a base64 image
in markdown. Colour is never the only difference: lines also differ in dashes and bars in labels, and each
chart has a title and a description in words.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from flows.report.wording import percent, short_number

# Inner width of every chart. Chosen so that 14-unit text is still over 10 px on a 360 px wide phone.
WIDTH = 420


@dataclass(frozen=True)
class LineStyle:
    """The colour of a line on light and dark pages, and its dashes (`stroke-dasharray`)."""

    light: str
    dark: str
    dashes: str


# The styles of lines by their position in the chart, which repeat for more lines. Each colour has a contrast
# of at least 4.5 to the page behind it, and no two styles have the same dashes.
PALETTE = (
    LineStyle("#1d5fc4", "#74a9ff", "none"),
    LineStyle("#b4490b", "#ff9a57", "7 4"),
    LineStyle("#15734a", "#55c78f", "2 4"),
    LineStyle("#7a3fc0", "#c39bff", "9 3 2 3"),
    LineStyle("#0b7285", "#4dd0e1", "14 4"),
    LineStyle("#a61e4d", "#ff8fab", "1 3 6 3"),
    LineStyle("#5f6b00", "#cddc39", "4 2"),
    LineStyle("#6d4c41", "#d7b8a9", "1 5"),
    LineStyle("#37474f", "#b0bec5", "12 3 2 3 2 3"),
    LineStyle("#8e24aa", "#e6a0f5", "5 6"),
)


def _colours(names: str, palette: Sequence[str]) -> str:
    return names + "".join(f"--c{number}:{colour};" for number, colour in enumerate(palette, start=1))


_LIGHT = _colours(
    "--ink:#1b2330;--muted:#55606e;--grid:#dde2e8;--surface:#ffffff;--base:#8a94a1;",
    [style.light for style in PALETTE],
)
_DARK = _colours(
    "--ink:#e8ecf1;--muted:#a7b1bd;--grid:#38414d;--surface:#171c23;--base:#7d8896;",
    [style.dark for style in PALETTE],
)
STYLE = (
    f":root{{{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    ".chart{font:14px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;display:block}"
    ".chart{width:100%;height:auto}"
    ".chart text{fill:var(--ink)}.chart .tick{fill:var(--muted);font-size:13px}"
    ".chart .grid{stroke:var(--grid);stroke-width:1}.chart .axis{stroke:var(--muted);stroke-width:1}"
    ".chart .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}"
    ".chart .raw{fill:none;stroke-width:1;opacity:.4}"
    + "".join(
        f".chart .s{number}{{stroke:var(--c{number});stroke-dasharray:{style.dashes}}}"
        f".chart .d{number}{{fill:var(--c{number})}}"
        for number, style in enumerate(PALETTE, start=1)
    )
    + ".chart .raw{stroke-dasharray:none}.chart .dot{stroke:none}"
    ".chart .baseline{fill:var(--base)}.chart .model{fill:var(--c1)}.chart .final{fill:var(--c3)}"
    ".chart .whisker{stroke:var(--ink);stroke-width:1.6}.chart .strong{font-weight:650}"
    ".chart .node{fill:var(--surface);stroke:var(--muted);stroke-width:1.2}"
    ".chart .node.input{stroke-dasharray:4 3}.chart .edge{fill:none;stroke:var(--muted);stroke-width:1.4}"
    ".chart .head{fill:var(--muted)}.chart .paper{fill:var(--surface)}"
)

BarKind = Literal["baseline", "model", "final"]


@dataclass(frozen=True)
class Series:
    """One line of a line chart.

    A `raw` line is thin, is drawn under the others, and has no legend entry.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    raw: bool = False


@dataclass(frozen=True)
class Bar:
    """One horizontal bar of a bar chart, with an interval if `low` and `high` are given."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: BarKind = "model"


@dataclass(frozen=True)
class Node:
    """One box of a graph, in row `rank` counted from the top."""

    name: str
    label: str
    detail: str
    rank: int
    is_input: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose a range.

    Args:
        low: smallest value of the range.
        high: largest value of the range.
        count: approximate number of ticks.
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low, low + 1.0]
    raw = span / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    # 1, 2, 2.5, 5 and 10 times a power of ten are steps that people read without counting. The small
    # factor keeps a rounding error from choosing the next larger step.
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    # The same factor handles values that differ from a multiple of the step only in their last bit.
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    # 0.1 * 3 is 0.30000000000000004; rounding keeps that out of the labels.
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], most: int = 300) -> tuple[tuple[float, float], ...]:
    """Average neighbouring points until at most `most` points are left, which a chart can show."""
    size = math.ceil(len(points) / most) if points else 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple(
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    )


def smooth(points: Sequence[tuple[float, float]], share: float = 0.05) -> tuple[tuple[float, float], ...]:
    """Return the centred moving mean over `share` of the points; at the ends, the window is cut off."""
    half = int(len(points) * share / 2)
    out = []
    for index, (x, _) in enumerate(points):
        window = points[max(index - half, 0) : index + half + 1]
        out.append((x, sum(y for _, y in window) / len(window)))
    return tuple(out)


def line_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    y_format: Callable[[float], str] = short_number,
    x_categories: Sequence[str] | None = None,
) -> str:
    """Draw lines over a numeric axis, or over equally spaced categories.

    Args:
        title: title of the chart, for screen readers.
        description: content of the chart in words, for screen readers.
        series: lines of the chart.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        y_range: range of the vertical axis; by default from zero to the largest value.
        y_format: formats a value of the vertical axis.
        x_categories: names of the categories. With categories, x is the index of a category.
    """
    named = [line for line in series if not line.raw]
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points if math.isfinite(y)]
    x_ticks = [float(i) for i in range(len(x_categories))] if x_categories else nice_ticks(min(xs), max(xs))
    y_ticks = nice_ticks(*(y_range or (min(0.0, *ys), max(ys))))
    # At least one unit wide: a training of one step has one point.
    x_low, x_high = (min(x_ticks), max(x_ticks)) if x_categories else (min(xs), max(max(xs), min(xs) + 1))
    x_ticks = [tick for tick in x_ticks if x_low <= tick <= x_high]

    tick_names = [y_format(tick) for tick in y_ticks]
    # The width of SVG text is unknown before it is drawn. 8 units per letter are enough for the fonts in use.
    left = 14 + 8 * max(len(name) for name in tick_names)
    legend_rows = _legend(named, left)
    top, bottom, right = 30 + 22 * len(legend_rows), 44, 18
    height = top + 200 + bottom

    def px(x: float) -> float:
        return left + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - left - right)

    def py(y: float) -> float:
        return top + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * 200

    body = [_text(2, 16, y_label, anchor="start")]
    for row, entries in enumerate(legend_rows):
        body += [_legend_entry(x, 36 + 22 * row, index, name) for x, index, name in entries]
    for tick, name in zip(y_ticks, tick_names, strict=True):
        kind = "axis" if tick == y_ticks[0] else "grid"
        body.append(_line(left, py(tick), WIDTH - right, py(tick), kind))
        body.append(_text(left - 6, py(tick) + 4.5, name, anchor="end"))
    for tick in x_ticks:
        name = x_categories[int(tick)] if x_categories else short_number(tick)
        body.append(_text(px(tick), top + 218, name))
    middle = (left + WIDTH - right) / 2
    body.append(_text(middle, height - 6, x_label))
    colours = {line.name: index % len(PALETTE) + 1 for index, line in enumerate(named)}
    # Raw lines first: SVG paints in document order, and the mean must lie on top.
    for line in sorted(series, key=lambda line: not line.raw):
        colour = colours.get(line.name, 1)
        points = [(px(x), py(y)) for x, y in line.points if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline class="{"raw" if line.raw else "line"} s{colour}" points="{path}"/>')
        if x_categories:
            body += [f'<circle class="dot d{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in points]
    return _svg(title, description, height, body)


def bar_chart(
    title: str,
    description: str,
    bars: Sequence[Bar],
    *,
    x_range: tuple[float, float] | None = None,
    value_format: Callable[[float], str] = percent,
    axis: bool = True,
) -> str:
    """Draw horizontal bars from zero, each with its value and, where given, its interval as a whisker.

    Args:
        title: title of the chart, for screen readers.
        description: content of the chart in words, for screen readers.
        bars: bars from top to bottom.
        x_range: range of the horizontal axis; by default from zero to the largest value.
        value_format: formats the value of a bar.
        axis: whether to draw the axis; False draws only the zero line.
    """
    low, high = x_range or (0.0, max([bar.high or bar.value for bar in bars] + [1e-9]))
    left = 16 + int(7.4 * max(len(bar.label) for bar in bars))
    right = 12 + int(7.8 * max(len(value_format(bar.value)) for bar in bars))
    # Long labels leave a short axis: fewer ticks, so that their values do not overlap.
    for count in (5, 4, 3, 2):
        ticks = nice_ticks(low, high, count=count)
        names = [value_format(tick).replace(".0 %", " %") for tick in ticks]
        if (len(ticks) - 1) * (10 + 7.4 * max(map(len, names))) <= WIDTH - left - right:
            break
    row, top = 30, 8
    bottom = top + row * len(bars)

    def px(x: float) -> float:
        return left + (min(max(x, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0]) * (
            WIDTH - left - right
        )

    body = []
    for tick, name in zip(ticks, names, strict=True):
        if axis:
            body.append(_line(px(tick), top, px(tick), bottom, "grid"))
            body.append(_text(px(tick), bottom + 18, name))
    body.append(_line(px(0), top, px(0), bottom, "axis"))
    for index, bar in enumerate(bars):
        centre = top + row * index + row / 2
        weight = " strong" if bar.kind == "final" else ""
        body.append(
            _text(left - 8, centre + 5, bar.label, f"label{weight}", "end")
            + f'<rect class="{bar.kind}" x="{left}" y="{centre - 9}" height="18" rx="2" '
            f'width="{max(px(bar.value) - left, 0):.1f}"/>'
            + _text(WIDTH - 2, centre + 5, value_format(bar.value), f"label{weight}", "end")
        )
        if bar.low is not None and bar.high is not None:
            ends = px(bar.low), px(bar.high)
            body.append(_line(ends[0], centre, ends[1], centre, "whisker"))
            body += [_line(x, centre - 5, x, centre + 5, "whisker") for x in ends]
    return _svg(title, description, bottom + (26 if axis else 4), body)


def graph(title: str, description: str, nodes: Sequence[Node], edges: Sequence[tuple[str, str]]) -> str:
    """Draw boxes in rows by rank, and arrows between them.

    Args:
        title: title of the chart, for screen readers.
        description: content of the chart in words, for screen readers.
        nodes: boxes of the graph.
        edges: pairs of node names, from and to.
    """
    ranks = sorted({node.rank for node in nodes})
    box_height, gap = 46, 40
    centres: dict[str, tuple[float, float]] = {}
    body: list[str] = []
    boxes: list[str] = []
    for row, rank in enumerate(ranks):
        members = [node for node in nodes if node.rank == rank]
        slot = WIDTH / len(members)
        width = min(slot - 12, 172)
        y = 6 + row * (box_height + gap)
        for column, node in enumerate(members):
            x = slot * (column + 0.5)
            centres[node.name] = (x, y)
            kind = "node input" if node.is_input else "node"
            boxes.append(
                f'<rect class="{kind}" x="{x - width / 2:.1f}" y="{y}" width="{width:.1f}" '
                f'height="{box_height}" rx="6"/>'
                + _text(x, y + 19, _fit(node.label, width), "label")
                + _text(x, y + 37, _fit(node.detail, width))
            )
    for start, end in edges:
        (x0, y0), (x1, y1) = centres[start], centres[end]
        y0, y1 = y0 + box_height, y1 - 5
        # The edge goes down beside the boxes in between, then across in the gap above the target.
        turn = y1 - gap + 5
        body.append(
            f'<path class="edge" d="M{x0:.1f} {y0} V{turn} '
            f'C{x0:.1f} {turn + 20} {x1:.1f} {turn + 12} {x1:.1f} {y1}"/>'
        )
        body.append(f'<path class="head" d="M{x1 - 4:.1f} {y1 - 1} h8 l-4 6 z"/>')
    return _svg(title, description, 12 + len(ranks) * (box_height + gap) - gap, body + boxes)


def standalone(svg: str) -> str:
    """Return a chart with its own style sheet and background, for use outside the HTML page."""
    head, _, rest = svg.partition(">")
    return f'{head}><style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>{rest}'


def data_uri(svg: str) -> str:
    """Return a chart as a base64 data URI, which both Prefect UIs show in markdown."""
    return "data:image/svg+xml;base64," + base64.b64encode(standalone(svg).encode("utf-8")).decode("ascii")


def _svg(title: str, description: str, height: float, body: Sequence[str]) -> str:
    """Return an SVG element with the drawn parts, and a title and description for screen readers."""
    # Ids must be unique in the page and the same at every rendering; a counter would depend on the other
    # charts.
    name = "c" + hashlib.sha256(f"{title}\n{description}".encode()).hexdigest()[:10]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{"".join(body)}</svg>'
    )


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "tick", anchor: str = "middle") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _legend(named: Sequence[Series], left: float) -> list[list[tuple[float, int, str]]]:
    """Return the legend as rows of (x, colour, name); a chart with a single line has no legend."""
    if len(named) < 2:
        return []
    rows: list[list[tuple[float, int, str]]] = [[]]
    x = left
    for index, line in enumerate(named):
        width = 52 + 8.4 * len(line.name)
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = left
        rows[-1].append((x, index % len(PALETTE) + 1, line.name))
        x += width
    return rows


def _legend_entry(x: float, y: float, colour: int, name: str) -> str:
    return f'<line class="line s{colour}" x1="{x:.0f}" y1="{y}" x2="{x + 24:.0f}" y2="{y}"/>' + _text(
        x + 30, y + 5, name, "label", "start"
    )


def _fit(text: str, width: float) -> str:
    """Return a label, shortened to the width of its box."""
    most = int(width / 7.4)
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"
