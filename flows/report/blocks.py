"""The blocks of a report, which are independent of the output format, and their form in markdown.

The HTML page and Prefect's markdown artifacts show the same blocks, so their content is always the same. Text
in blocks is plain, but `backticks` mark digests, paths and names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from flows.report.svg_charts import data_uri

Mark = Literal["", "right", "wrong"]


@dataclass(frozen=True)
class Prose:
    """One paragraph of text."""

    text: str
    kind: Literal["prose"] = "prose"


@dataclass(frozen=True)
class Fact:
    """One important number, with its label and a note on its meaning."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Important numbers that are shown side by side."""

    items: tuple[Fact, ...]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row.

    Attributes:
        caption: text above the table.
        headers: header of each column.
        rows: cells of each row.
        text_columns: indices of the columns that contain text, not numbers.
        strong_rows: indices of the rows to emphasize.
        kind: name of the block type, for the template.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = ()
    strong_rows: tuple[int, ...] = ()
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Figure:
    """A chart (see `flows.report.svg_charts`) under its title."""

    title: str
    svg: str
    note: str = ""
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Passage:
    """A part of a prompt's context, such as a post.

    `mark` is set for a right post and for a post that the system wrongly chose.
    """

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Answer:
    """The answer of a system, or the reference answer, whose `mark` is empty."""

    who: str
    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Example:
    """One record in readable form, with its context, question and answers."""

    title: str
    context: tuple[Passage, ...]
    question: str
    answers: tuple[Answer, ...]
    kind: Literal["example"] = "example"


@dataclass(frozen=True)
class Code:
    """Verbatim text, which is collapsed in formats that support it."""

    title: str
    text: str
    language: str = ""
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class Columns:
    """Blocks that are shown side by side on a wide page."""

    items: tuple[Figure | Table | Example, ...]
    kind: Literal["columns"] = "columns"


Block = Prose | Facts | Table | Figure | Example | Code | Columns


@dataclass(frozen=True)
class Section:
    """A titled part of the report.

    `name` is the anchor of the section and the key of its Prefect artifact, in lower case with dashes.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


_MARKS: dict[Mark, str] = {"": "", "right": "✓", "wrong": "✗"}


def to_markdown(section: Section) -> str:
    """Render one section as markdown, with charts as embedded base64 SVG images."""
    return "\n\n".join([f"## {section.title}", *(_block(block) for block in section.blocks)]) + "\n"


def _block(block: Block) -> str:
    match block:
        case Prose(text=text):
            return text
        case Facts(items=items):
            rows = tuple((item.label, f"**{item.value}**", item.note) for item in items)
            return _table(("", "", ""), rows, (1, 2))
        case Table():
            table = _table(block.headers, block.rows, block.text_columns, block.strong_rows)
            return f"**{block.caption}**\n\n{table}" if block.caption else table
        case Figure():
            image = f"**{block.title}**\n\n![{_alt(block.title)}]({data_uri(block.svg)})"
            return f"{image}\n\n{block.note}" if block.note else image
        case Example():
            return _example(block)
        case Columns(items=items):
            return "\n\n".join(_block(item) for item in items)
        case Code():
            return f"**{block.title}**\n\n{_fence(block.text, block.language)}"


def _table(
    headers: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
    text_columns: tuple[int, ...],
    strong_rows: tuple[int, ...] = (),
) -> str:
    rule = ["---" if column == 0 or column in text_columns else "---:" for column in range(len(headers))]
    lines = [_row(headers), "|" + "|".join(rule) + "|"]
    for index, row in enumerate(rows):
        lines.append(
            _row(tuple(f"**{cell}**" if cell else "" for cell in row) if index in strong_rows else row)
        )
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    # A cell is part of one line. A pipe, a line break or a tag in the data must not end the cell.
    clean = (" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
    return "| " + " | ".join(clean) + " |"


def _example(example: Example) -> str:
    lines = [f"{_MARKS[part.mark]:<2}" + part.text.replace("\n", "\n  ") for part in example.context]
    answers = [
        f"- {answer.who}: `{_inline(answer.text)}` {_MARKS[answer.mark]}".rstrip()
        for answer in example.answers
    ]
    return "\n\n".join(
        [f"**{example.title}**", _fence("\n\n".join([*lines, example.question])), "\n".join(answers)]
    )


def _fence(text: str, language: str = "") -> str:
    # CommonMark: a fence is closed only by a longer or equal run of backticks, and posts may hold such
    # runs.
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _inline(text: str) -> str:
    # A backtick would end the code span, and markdown has no escape inside of it.
    return " ".join(text.split()).replace("`", "'")


def _alt(text: str) -> str:
    # A bracket would end the image's description.
    return re.sub(r"[\[\]]", "", text)
