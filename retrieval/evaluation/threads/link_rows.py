"""The rows of `links.parquet`: reply links of held-out threads, as annotated and as predicted by rules.

A link is a pair (message, parent) of numbers. A message that starts a conversation has a link to itself. In a
log whose annotation names lines (IRC), numbers are line numbers, and annotated lines of the system have rows
too. Elsewhere a number is the place of the post in its thread, and what the posts say is the annotation: a
post without a parent starts a conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from retrieval.evaluation.measures.links import Link

#: Predictions in the file, by column: rules without a model, and the learned fusion where it was fitted.
RULES = ("previous_post", "previous_other_author", "addressed_then_previous")
LEARNED = "learned"

#: One row for each post of a thread, and for each other annotated line. `id` is that of the record of the
#: message, if it has one, and `post_id` is empty for a line of the system. `parents` are the annotated ones,
#: and empty without annotation. `asked` is whether the message can be asked: annotated, with a text, and with
#: earlier posts. The predictions of a rule or of the learned fusion are empty where `parents` are.
LINK_COLUMNS: dict[str, str] = {
    "task": "str",
    "split": "str",
    "id": "str",
    "context_id": "str",
    "post_id": "str",
    "number": "int",
    "parents": "ints",
    "asked": "bool",
    **dict.fromkeys((*RULES, LEARNED), "ints"),
}

Row = Mapping[str, Any]


def links_in(rows: Iterable[Row], column: str) -> dict[str, set[Link]]:
    """Return the links of the annotated messages by log, from `parents` or from a column of predictions."""
    found: dict[str, set[Link]] = {}
    for row in rows:
        links = found.setdefault(row["context_id"], set())
        if row["parents"]:
            links |= {(row["number"], parent) for parent in row[column]}
    return found
