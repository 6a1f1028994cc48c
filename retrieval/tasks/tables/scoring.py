"""Scores of answers to table questions."""

from __future__ import annotations

from typing import Any

from retrieval.evaluation.answer_scores import tables_scores, tables_values
from retrieval.tasks.answers import Answers, RecordValues, text_scores, text_values


def score(answers: Answers) -> dict[str, Any]:
    """Return the denotation accuracy of every system.

    `left_out` says of how many questions the canonical values are not known.
    """
    scores = text_scores(answers, tables_scores)
    without = sum(not record.get("canonical") for record in answers.records)
    if not without:
        return scores
    reason = (
        f"canonical values of right answers: {without:,} of {len(answers.records):,} questions have none "
        "(WikiTableQuestions has them in its tagged files); the texts of their right answers decide"
    )
    return scores | {"left_out": {"tables": [reason]}}


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system for each record."""
    return text_values(answers, tables_values)
