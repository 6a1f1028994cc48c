"""Files in which a person decides about made questions: an HTML page, or a CSV table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import atomic_path
from retrieval.synthesis.decisions import COLUMNS
from retrieval.synthesis.question_files import QUESTIONS, REFUSED

FORMATS = (".html", ".csv")
_TEMPLATE = "review.html"


def read_review(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a review: the accepted questions, then the refused ones.

    Args:
        folder: artifact of the stage `make-questions`.
    """
    import pyarrow.parquet as pq

    rows = []
    for name in (QUESTIONS, REFUSED):
        for row in pq.read_table(folder / name).to_pylist():
            rows.append(
                {
                    "id": row["id"],
                    "decision": row["decision"],
                    "kind": row["kind"],
                    "question": row["question"],
                    "answer": (row["answers"] or [""])[0],
                    "reasoned": row["reasoned"],
                    "evidence": row["evidence"] or " … ".join(row["quotes"]),
                    "document_id": row["document_id"],
                    "checks": row.get("reason", ""),
                }
            )
    return rows


def write_review(path: Path, rows: Sequence[Mapping[str, Any]], project: str) -> None:
    """Write the questions for a person who decides about them.

    Args:
        path: the file; its ending is one of `FORMATS`.
        rows: the questions, as `read_review` returns them.
        project: name of the project, for the title of the page.

    Raises:
        InputError: the file cannot be written.
    """
    text = _csv(rows) if path.suffix.lower() == ".csv" else _html(rows, project)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _html(rows: Sequence[Mapping[str, Any]], project: str) -> str:
    """Return a page that works without a server: it saves the decisions as a file of JSON lines."""
    template = files("flows.commands.prompts").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    # `<` would let a question end the script.
    data = json.dumps(list(rows), ensure_ascii=False).replace("<", "\\u003c")
    name = json.dumps(project or "questions").replace("<", "\\u003c")
    return template.replace("/*ROWS*/[]", data).replace('/*PROJECT*/""', name)
