"""Score answers to thread records: the directionality of each system and of four simple baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retrieval.evaluation.answer_scores import (
    Prediction,
    baseline_predictions,
    directionality,
    paired_difference,
    prediction_from_answer,
    thread_values,
)
from retrieval.evaluation.calibration import calibrations
from retrieval.evaluation.combined_answers import combine, fit_weights
from retrieval.tasks.answers import Answers, RecordValues, Row

#: The system of the most trained model and the learned fusion together.
COMBINED = "model_and_learned"


def score(answers: Answers) -> dict[str, Any]:
    """Score the directionality of every system and of the baselines.

    If the answers hold records that no system has seen, the most trained system and the learned fusion are
    scored together too, and compared with each of the two.

    If the records have both choices and written answers, the choices are scored, and the scores of the
    written answers are added under `generated`. The choices' probabilities have their `calibration`.
    """
    rankings = _rankings(answers)
    seed, resamples = answers.seed, answers.resamples
    predictions = _predictions(answers, _scored_column(answers))
    together = _combined(answers, rankings, predictions)
    scores = directionality({**predictions, **together.predictions}, rankings, seed=seed, resamples=resamples)
    if together.predictions:
        scores["combined"] = together.facts
    scores["answers"] = "generated" if answers.mode == "generate" else "choice"
    if answers.mode != "generate":
        scores["calibration"] = _calibrations(answers, predictions, rankings)
    if answers.mode == "both":
        written = directionality(_predictions(answers, "text"), rankings, seed=seed, resamples=resamples)[
            "systems"
        ]
        # The baselines choose a post; written answers of theirs would be the same figures again.
        scores["generated"] = {"systems": {name: written[name] for name in answers.by_system("text")}}
    return scores


def _calibrations(
    answers: Answers, predictions: Mapping[str, Mapping[str, Prediction]], rankings: Sequence[Row]
) -> dict[str, Any]:
    """Return how well each system's probabilities of its choices tell whether it names the right post."""
    ids = [row["id"] for row in rankings]
    right = {
        system: dict(zip(ids, thread_values(given, rankings)["reply@1"], strict=True))
        for system, given in predictions.items()
    }
    return calibrations(answers.rows, right)


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system and baseline for each record, of choices where they exist."""
    rankings = _rankings(answers)
    predictions = _predictions(answers, _scored_column(answers))
    systems = {
        **baseline_predictions(rankings, answers.seed),
        **predictions,
        **_combined(answers, rankings, predictions).predictions,
    }
    return RecordValues(
        [row["id"] for row in rankings],
        [row["context_id"] for row in rankings],
        {system: thread_values(given, rankings) for system, given in systems.items()},
    )


def _rankings(answers: Answers) -> list[Row]:
    # A limited evaluation answers some of the records only; the baselines are scored on the same ones.
    records = {record["id"] for record in answers.records}
    return [row for row in answers.rankings() if row["id"] in records]


def _scored_column(answers: Answers) -> str:
    return "text" if answers.mode == "generate" else "choice"


def _predictions(answers: Answers, column: str) -> dict[str, dict[str, Prediction]]:
    """Parse the answers in one column, by system and record id."""
    records = {record["id"]: record for record in answers.records}
    return {
        system: {name: prediction_from_answer(answer, records[name]) for name, answer in given.items()}
        for system, given in answers.by_system(column).items()
    }


@dataclass(frozen=True)
class _Together:
    """The answers of model and learned fusion as one system, and how they compare; both may be empty."""

    predictions: Mapping[str, Mapping[str, Prediction]]
    facts: Mapping[str, Any]


def _combined(
    answers: Answers, rankings: Sequence[Row], predictions: Mapping[str, Mapping[str, Prediction]]
) -> _Together:
    """Combine the most trained system with the learned fusion, if there are records to fit the weights on."""
    if not answers.unseen_records:
        return _Together({}, {})
    weights = fit_weights(answers.unseen_records, answers.unseen_rows)
    system = list(predictions)[-1]
    rows = [row for row in answers.rows if row["system"] == system]
    together = combine(answers.records, rows, rankings, weights)
    alone = {
        system: predictions[system],
        "learned": baseline_predictions(rankings, answers.seed)["learned"],
    }
    minus = {
        name: paired_difference(together, given, rankings, seed=answers.seed, resamples=answers.resamples)
        for name, given in alone.items()
    }
    return _Together({COMBINED: together}, {"system": system, "weights": asdict(weights), "minus": minus})
