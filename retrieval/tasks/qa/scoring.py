"""Scores of answers to questions over documents."""

from __future__ import annotations

from typing import Any

from retrieval.evaluation.answer_scores import qa_scores, qa_values
from retrieval.tasks.answers import Answers, RecordValues, text_scores, text_values


def score(answers: Answers) -> dict[str, Any]:
    """Return the measures of every system: exact match, F1, and those of special records."""
    return text_scores(answers, qa_scores)


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system for each record."""
    return text_values(answers, qa_values)
