"""Score answers to thread records: the directionality of each system and of four simple baselines."""

from __future__ import annotations

from typing import Any

from retrieval.evaluation.answer_scores import (
    Prediction,
    baseline_predictions,
    directionality,
    prediction_from_answer,
    thread_values,
)
from retrieval.tasks.answers import Answers, RecordValues


def score(answers: Answers) -> dict[str, Any]:
    """Score the directionality of every system and of the baselines.

    If the records have both choices and written answers, the choices are scored, and the scores of the
    written answers are added under `generated`.
    """
    records = {record["id"] for record in answers.records}
    # A limited evaluation answers some of the records only; the baselines are scored on the same ones.
    rankings = [row for row in answers.rankings() if row["id"] in records]

    def scores_of(column: str) -> dict[str, Any]:
        predictions = _predictions(answers, column)
        return directionality(predictions, rankings, seed=answers.seed, resamples=answers.resamples)

    scores = scores_of("text" if answers.mode == "generate" else "choice")
    scores["answers"] = "generated" if answers.mode == "generate" else "choice"
    if answers.mode == "both":
        written = scores_of("text")["systems"]
        # The baselines choose a post; written answers of theirs would be the same figures again.
        scores["generated"] = {"systems": {name: written[name] for name in answers.by_system("text")}}
    return scores


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system and baseline for each record, of choices where they exist."""
    records = {record["id"] for record in answers.records}
    rankings = [row for row in answers.rankings() if row["id"] in records]
    predictions = baseline_predictions(rankings, answers.seed)
    predictions |= _predictions(answers, "text" if answers.mode == "generate" else "choice")
    return RecordValues(
        [row["id"] for row in rankings],
        [row["context_id"] for row in rankings],
        {system: thread_values(given, rankings) for system, given in predictions.items()},
    )


def _predictions(answers: Answers, column: str) -> dict[str, dict[str, Prediction]]:
    """Parse the answers in one column, by system and record id."""
    records = {record["id"]: record for record in answers.records}
    return {
        system: {name: prediction_from_answer(answer, records[name]) for name, answer in given.items()}
        for system, given in answers.by_system(column).items()
    }
