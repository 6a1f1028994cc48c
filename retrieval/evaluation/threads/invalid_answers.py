"""The share of written answers that are none of the choices of their prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.prompts.answer_matching import parse_answer

Row = Mapping[str, Any]


def invalid_answers(
    answers: Mapping[str, str | None], records: Sequence[Row], *, seed: int, resamples: int
) -> dict[str, Any]:
    """Return the share of records whose answer is no choice of theirs, or missing, as {value, low, high, n}.

    An answer is a choice if it has its number and its author, apart from case, spaces and a closing full
    stop. A right number with another author is invalid: the measures of posts may still take it for right.

    Args:
        answers: written answers by record id.
        records: the records, with `choices`.
        seed: seed of the resamples.
        resamples: number of resamples.
    """
    invalid = [
        _folded(answers.get(record["id"]) or "") not in set(map(_folded, record["choices"]))
        for record in records
    ]
    intervals = ContextBootstrap.over([record["context_id"] for record in records], seed, resamples)
    return intervals.ratio(np.array(invalid, dtype=np.float64), np.ones(len(records)))


def _folded(answer: str) -> tuple[str, int | None]:
    author, number = parse_answer(answer)
    return " ".join((author or "").casefold().split()).rstrip(".,;:!?"), number
