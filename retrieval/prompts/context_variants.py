"""Prompts with changed contexts, which show what a model takes from its context.

- `closed_book`: the question alone. What is right then, the model knew or guessed.
- `oracle_only`: the right texts alone, of those in the prompt. What is wrong then, no retriever can mend.
- `shuffled`: the same texts in another order, by seed. What changes then depends on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retrieval.prompts.templates import documents_of, qa_prompt_of
from retrieval.text.normalize import seeded_hash

Row = Mapping[str, Any]

#: Of a prompt's texts, the places that stay, in their new order.
_Choice = Callable[[Row, Sequence[int], int], list[int]]


def _closed_book(record: Row, shown: Sequence[int], seed: int) -> list[int]:
    return []


def _oracle_only(record: Row, shown: Sequence[int], seed: int) -> list[int]:
    right = set(record["oracle_ids"])
    return [place for place in shown if record["context_ids"][place] in right]


def _shuffled(record: Row, shown: Sequence[int], seed: int) -> list[int]:
    return sorted(shown, key=lambda place: (seeded_hash(seed, "shuffled", record["id"], str(place)), place))


#: By the name of the system.
VARIANTS: dict[str, _Choice] = {
    "closed_book": _closed_book,
    "oracle_only": _oracle_only,
    "shuffled": _shuffled,
}


def with_context(record: Row, variant: str, seed: int) -> dict[str, Any] | None:
    """Return a record whose prompt has another context, with the same id and the same choices.

    Args:
        record: the record.
        variant: one of VARIANTS.
        seed: seed of the order of `shuffled`.

    Returns:
        The record; None if its prompt does not say where its texts begin and end (instructions; documents
        with lines that look like the beginning of another one).
    """
    split = _qa_texts(record) if record["task"] == "qa" else _blocks(record)
    if split is None:
        return None
    texts, places, question = split
    kept = VARIANTS[variant](record, places, seed)
    shown = [texts[places.index(place)] for place in kept]
    return {
        **record,
        "input": qa_prompt_of(shown, question) if record["task"] == "qa" else "\n\n".join([*shown, question]),
        "context_ids": [record["context_ids"][place] for place in kept],
    }


def _qa_texts(record: Row) -> tuple[list[str], list[int], str] | None:
    """Return the documents, their places in `context_ids`, and the question."""
    count = len(record["context_ids"])
    texts = documents_of(record["input"], count)
    question = record["input"].rpartition("\n\nQuestion: ")[2]
    # Text between two lines that look like the same beginning is in no document.
    whole = count > 0 and qa_prompt_of(texts, question) == record["input"]
    return (texts, list(range(count)), question) if whole else None


def _blocks(record: Row) -> tuple[list[str], list[int], str] | None:
    """Return the posts or tables, their places in `context_ids`, and the last paragraph."""
    *blocks, question = record["input"].split("\n\n")
    if len(blocks) != len(record["context_ids"]):
        return None
    places = list(range(len(blocks)))
    if record["task"] == "threads":
        # Posts stand in the order of time, and may be numbered by rank: their labels name their places.
        labels = {label: place for place, label in enumerate(record["choices"][: len(blocks)])}
        named = [labels.get(block.rpartition("\n")[2]) for block in blocks]
        if None in named:
            return None
        places = [place for place in named if place is not None]
    return blocks, places, question
