"""What a report is made of, independent of how it is shown, and how it is shown as markdown.

The HTML page and the orchestrator's markdown artifacts are two renderings of the same blocks, so they cannot
say different things. Text in blocks is plain, except that `backticks` mark digests, paths and names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from flows.report.svg_charts import data_uri

Mark = Literal["", "right", "wrong"]


@dataclass(frozen=True)
class Prose:
    """One paragraph."""

    text: str
    kind: Literal["prose"] = "prose"


@dataclass(frozen=True)
class Fact:
    """One number worth reading first, with what it means."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """A few numbers side by side."""

    items: tuple[Fact, ...]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; `text_columns` (by index) are not numbers."""

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
    """A part of a prompt's context, such as a post; `mark` tells the right one and a wrongly chosen one."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Answer:
    """What someone answered; `mark` is empty for the reference."""

    who: str
    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Example:
    """One record as a person reads it: context, question, answers."""

    title: str
    context: tuple[Passage, ...]
    question: str
    answers: tuple[Answer, ...]
    kind: Literal["example"] = "example"


@dataclass(frozen=True)
class Code:
    """Verbatim text, folded away where the medium can fold."""

    title: str
    text: str
    language: str = ""
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class Columns:
    """Blocks that stand side by side where there is room."""

    items: tuple[Figure | Table | Example, ...]
    kind: Literal["columns"] = "columns"


Block = Prose | Facts | Table | Figure | Example | Code | Columns


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `name` is its anchor and the key of its artifact (lower case, dashes)."""

    name: str
    title: str
    blocks: tuple[Block, ...]


_MARKS: dict[Mark, str] = {"": "", "right": "✓", "wrong": "✗"}


def to_markdown(section: Section) -> str:
    """Render one section as markdown; charts are embedded as base64 SVG images."""
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
    # A cell is one line of a table: a pipe, a line break or a tag in the data must not end it.
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
