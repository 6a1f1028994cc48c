"""Scores of answers to questions over documents."""

from __future__ import annotations

from typing import Any

from retrieval.evaluation.answer_scores import qa_scores
from retrieval.tasks.answers import Answers, text_scores


def score(answers: Answers) -> dict[str, Any]:
    """Return the exact match and F1 of every system."""
    return text_scores(answers, qa_scores)
