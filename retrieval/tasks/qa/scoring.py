"""Scores of answers to questions over documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from retrieval.evaluation.answer_scores import qa_scores, qa_values
from retrieval.tasks.answers import Answers, RecordValues, text_scores, text_values


def score(answers: Answers) -> dict[str, Any]:
    """Return the measures of every system: exact match, F1, and those of special records.

    In a build with questions that a model made, `question_origins` has the scores of these questions and of
    those by people apart.
    """
    found = text_scores(answers, qa_scores)
    if any("synthetic" in record for record in answers.records):
        found["question_origins"] = _by_origin(answers)
    return found


def _by_origin(answers: Answers) -> Mapping[str, Any]:
    by_origin: dict[str, Any] = {}
    for name, synthetic in (("human", False), ("synthetic", True)):
        records = [record for record in answers.records if record.get("synthetic", False) is synthetic]
        if records:
            scores = text_scores(replace(answers, records=records), qa_scores)
            by_origin[name] = {"records": len(records), **scores}
    return by_origin


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system for each record."""
    return text_values(answers, qa_values)
