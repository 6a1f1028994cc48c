"""Score answers to thread records: the directionality of each system and of four simple baselines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from retrieval.evaluation.answer_scores import (
    Prediction,
    baseline_predictions,
    directionality,
    paired_difference,
    prediction_from_answer,
)
from retrieval.evaluation.combined_answers import combine, fit_weights
from retrieval.tasks.answers import Answers

#: The system of the most trained model and the learned fusion together.
COMBINED = "model_and_learned"


def score(answers: Answers) -> dict[str, Any]:
    """Score the directionality of every system and of the baselines.

    If the answers hold records that no system has seen, the most trained system and the learned fusion are
    scored together too, and compared with each of the two.

    If the records have both choices and written answers, the choices are scored, and the scores of the
    written answers are added under `generated`.
    """
    records = {record["id"]: record for record in answers.records}
    # A limited evaluation answers some of the records only; the baselines are scored on the same ones.
    rankings = [row for row in answers.rankings() if row["id"] in records]

    seed, resamples = answers.seed, answers.resamples

    def predictions_of(column: str) -> dict[str, dict[str, Prediction]]:
        return {
            system: {name: prediction_from_answer(answer, records[name]) for name, answer in given.items()}
            for system, given in answers.by_system(column).items()
        }

    def scores_of(column: str) -> dict[str, Any]:
        return directionality(predictions_of(column), rankings, seed=seed, resamples=resamples)

    predictions = predictions_of("text" if answers.mode == "generate" else "choice")
    combined = {}
    if answers.unseen_records:
        weights = fit_weights(answers.unseen_records, answers.unseen_rows)
        system = next(reversed(predictions))
        rows = [row for row in answers.rows if row["system"] == system]
        together = combine(answers.records, rows, rankings, weights)
        alone = {
            system: predictions[system],
            "learned": baseline_predictions(rankings, seed)["learned"],
        }
        combined = {
            "system": system,
            "weights": asdict(weights),
            "minus": {
                name: paired_difference(together, given, rankings, seed=seed, resamples=resamples)
                for name, given in alone.items()
            },
        }
        predictions[COMBINED] = together
    scores = directionality(predictions, rankings, seed=seed, resamples=resamples)
    if combined:
        scores["combined"] = combined
    scores["answers"] = "generated" if answers.mode == "generate" else "choice"
    if answers.mode == "both":
        written = scores_of("text")["systems"]
        # The baselines choose a post; written answers of theirs would be the same figures again.
        scores["generated"] = {"systems": {name: written[name] for name in answers.by_system("text")}}
    return scores
