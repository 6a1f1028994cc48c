"""Scores of answers to table questions."""

from __future__ import annotations

from typing import Any

from retrieval.evaluation.answer_scores import tables_scores
from retrieval.tasks.answers import Answers, text_scores


def score(answers: Answers) -> dict[str, Any]:
    """Return the denotation accuracy of every system."""
    return text_scores(answers, tables_scores)
