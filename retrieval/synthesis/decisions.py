"""What a person decided about made questions: accepted, edited or refused, in a CSV or JSON-lines file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jora_core.base.errors import InputError, read_error

DECISIONS = ("accept", "edit", "refuse")
#: Columns of the CSV file of a review. `checks` says why the checks refused a question.
COLUMNS: tuple[str, ...] = (
    "id",
    "decision",
    "kind",
    "question",
    "answer",
    "reasoned",
    "evidence",
    "document_id",
    "checks",
)


@dataclass(frozen=True)
class Decision:
    """A decision about one question.

    Attributes:
        action: accept, edit or refuse.
        question: the question after the edit; "" leaves it.
        answer: the answer after the edit; None leaves it.
        reasoned: the reasoned answer after the edit; "" leaves it, or follows from the answer.
    """

    action: Literal["accept", "edit", "refuse"]
    question: str = ""
    answer: str | None = None
    reasoned: str = ""


def read_decisions(path: Path | None) -> dict[str, Decision]:
    """Return the decisions by the id of the question. Rows without a decision are left out.

    Args:
        path: the file; None for no decisions.

    Raises:
        InputError: the file cannot be read, or a row is wrong.
    """
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}; save it as UTF-8") from None
    found: dict[str, Decision] = {}
    for number, row in _rows(path, text):
        action = str(row.get("decision") or "").strip().lower()
        if not action:
            continue
        where, name = f"{path}, row {number}", str(row.get("id") or "").strip()
        if action not in DECISIONS:
            raise InputError(f"{where}: decision {action!r:.40}; expected {', '.join(DECISIONS)}, or nothing")
        if not name:
            raise InputError(f"{where}: id is missing; it names the question")
        if name in found:
            raise InputError(f"{where}: {name} is decided twice; leave one of the rows out")
        decision = Decision(action)  # pyright: ignore[reportArgumentType]
        if action == "edit":
            question = str(row.get("question") or "").strip()
            if not question:
                raise InputError(f"{where}: an edited question needs its text")
            answer = row.get("answer")
            decision = Decision(
                "edit",
                question,
                None if answer is None else str(answer).strip(),
                str(row.get("reasoned") or "").strip(),
            )
        found[name] = decision
    return found


def _rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix.lower() == ".csv":
        lines = csv.DictReader(text.splitlines(keepends=True))
        if "id" not in (lines.fieldnames or ()) or "decision" not in (lines.fieldnames or ()):
            raise InputError(
                f"{path}: expected the columns id and decision; `jora questions --review` writes them"
            )
        yield from enumerate(lines, 1)
        return
    if path.suffix.lower() not in (".jsonl", ".json"):
        raise InputError(f"{path}: expected a .csv or .jsonl file of decisions")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, row {number}: no JSON ({error}); expected an object a line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: expected an object with id and decision")
        yield number, row
