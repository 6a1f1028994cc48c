"""Scores of answers to table questions."""

from __future__ import annotations

from typing import Any

from retrieval.evaluation.answer_scores import tables_scores, tables_values
from retrieval.tasks.answers import Answers, RecordValues, text_scores, text_values


def score(answers: Answers) -> dict[str, Any]:
    """Return the denotation accuracy of every system."""
    return text_scores(answers, tables_scores)


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system for each record."""
    return text_values(answers, tables_values)
