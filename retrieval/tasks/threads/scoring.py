"""Score answers to thread records: the directionality of each system and of simple baselines, and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jora_core.base.record_columns import is_channel
from retrieval.evaluation.answer_scores import (
    Prediction,
    baseline_predictions,
    directionality,
    prediction_from_answer,
    thread_values,
)
from retrieval.evaluation.calibration import calibrations
from retrieval.evaluation.combined_answers import brier_scores, combine, fit_learned_alone, fit_weights
from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.threads.answer_links import answer_links, second_parent_threshold, second_parents
from retrieval.evaluation.threads.invalid_answers import invalid_answers
from retrieval.evaluation.threads.link_rows import LEARNED, RULES, links_in
from retrieval.evaluation.threads.link_scores import Links, link_scores
from retrieval.evaluation.threads.slices import reply_slices
from retrieval.tasks.answers import Answers, RecordValues, Row

#: The system of the most trained model and the learned fusion together.
COMBINED = "model_and_learned"
#: Before the names of measures of choices by log-likelihood for a character, and the measures that have them.
#: A choice names a post with its author, so `joint` would be `reply@1` again.
NORMALISED = "normalised_"
LENGTH_MEASURES = ("reply@1", "target@1")


def score(answers: Answers) -> dict[str, Any]:
    """Score the directionality of every system and of the baselines.

    If the answers hold records that no system has seen, the most trained system and the learned fusion are
    scored together too, and compared with each of the two.

    If the records have both choices and written answers, the choices are scored, and the scores of the
    written answers are added under `generated`. The choices' probabilities have their `calibration`.
    """
    rankings = _replies(_rankings(answers))
    seed, resamples = answers.seed, answers.resamples
    predictions = _predictions(answers, _scored_column(answers))
    together = _combined(answers, predictions)
    scores = directionality(
        {**predictions, **together.predictions},
        rankings,
        baselines=answers.baselines,
        seed=seed,
        resamples=resamples,
    )
    if together.predictions:
        scores["combined"] = together.facts
    scores["slices"] = reply_slices(
        {
            **baseline_predictions(rankings, seed, answers.baselines),
            **predictions,
            **together.predictions,
        },
        rankings,
        answers.records,
        seed=seed,
        resamples=resamples,
    )
    links = _links(answers)
    if links:
        scores["links"] = links
    for name, measures in _normalised(answers, rankings).items():
        scores["systems"][name] |= measures
    scores["answers"] = "generated" if answers.mode == "generate" else "choice"
    if answers.mode == "generate":
        for name, share in _invalid(answers).items():
            scores["systems"][name]["invalid_answers"] = share
    else:
        scores["calibration"] = _calibrations(answers, predictions, rankings)
    if answers.mode == "both":
        written = directionality(_predictions(answers, "text"), rankings, seed=seed, resamples=resamples)[
            "systems"
        ]
        # The baselines choose a post; written answers of theirs would be the same figures again.
        scores["generated"] = {
            "systems": {
                name: {**written[name], "invalid_answers": share} for name, share in _invalid(answers).items()
            }
        }
    return scores


def _normalised(answers: Answers, rankings: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the scores of each system's choices by log-likelihood for a character; empty without choices."""
    options = {"baselines": (), "seed": answers.seed, "resamples": answers.resamples}
    found = directionality(_normalised_predictions(answers), rankings, **options)["systems"]
    return {name: {f"{NORMALISED}{m}": scores[m] for m in LENGTH_MEASURES} for name, scores in found.items()}


def _normalised_predictions(answers: Answers) -> dict[str, dict[str, Prediction]]:
    if answers.mode == "generate" or any(row.get("normalised_choice") is None for row in answers.rows):
        return {}
    return _predictions(answers, "normalised_choice")


def _calibrations(
    answers: Answers, predictions: Mapping[str, Mapping[str, Prediction]], rankings: Sequence[Row]
) -> dict[str, Any]:
    """Return how well each system's probabilities of its choices tell whether it names the right post.

    A channel model has none: its log-probabilities are of the comment, and not of a choice.
    """
    ids = [row["id"] for row in rankings]
    right = {
        system: dict(zip(ids, thread_values(given, rankings)["reply@1"], strict=True))
        for system, given in predictions.items()
    }
    channel = {record["id"] for record in answers.records if is_channel(record)}
    return calibrations([row for row in answers.rows if row["id"] not in channel], right)


def _invalid(answers: Answers) -> dict[str, Any]:
    """Return the share of invalid written answers of each system."""
    options = {"seed": answers.seed, "resamples": answers.resamples}
    return {
        name: invalid_answers(given, answers.records, **options)
        for name, given in answers.by_system("text").items()
    }


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system and baseline for each record, of choices where they exist."""
    rankings = _replies(_rankings(answers))
    predictions = _predictions(answers, _scored_column(answers))
    systems = {
        **baseline_predictions(rankings, answers.seed, answers.baselines),
        **predictions,
        **_combined(answers, predictions).predictions,
    }
    found = {system: thread_values(given, rankings) for system, given in systems.items()}
    for system, given in _normalised_predictions(answers).items():
        measures = thread_values(given, rankings)
        found[system] |= {f"{NORMALISED}{name}": measures[name] for name in LENGTH_MEASURES}
    return RecordValues([row["id"] for row in rankings], [row["context_id"] for row in rankings], found)


def right_choices(records: Sequence[Row], rankings: Sequence[Row]) -> dict[str, list[int]]:
    """Return the numbers of the choices that name a right post, of each comment that answers one."""
    right = {row["id"]: set(row["gold_ids"]) for row in _replies(rankings)}
    return {
        record["id"]: [
            number
            for number, choice in enumerate(record["choices"])
            if prediction_from_answer(choice, record).post_id in right[record["id"]]
        ]
        for record in records
        if record["id"] in right
    }


def predicted_links(answers: Answers) -> Predicted | None:
    """Return the links of every system that can say that a message starts a conversation; None without links.

    Without records of starts these are the rules and the learned fusion, on all logs with links. With them,
    the models are systems too, and all are scored on the logs of which every record was drawn.
    """
    rows = answers.links()
    if not any(row["parents"] for row in rows):
        return None
    rankings = answers.rankings()
    threshold = None
    systems: dict[str, Mapping[str, Prediction]] = {}
    second: Mapping[str, Mapping[str, Prediction]] = {}
    if any(not row["gold_ids"] for row in rankings):
        drawn = {record["id"] for record in answers.records}
        cut = {row["context_id"] for row in rankings if row["id"] not in drawn}
        rows = [row for row in rows if row["context_id"] not in cut]
        predictions = _predictions(answers, _scored_column(answers))
        systems = {**predictions, **_combined(answers, predictions).predictions}
        if answers.unseen_records and answers.mode != "generate":
            threshold = second_parent_threshold(answers.unseen_records, answers.unseen_rows)
        if threshold is not None:
            trained = answers.unseen_rows[0]["system"]
            of_trained = [row for row in answers.rows if row["system"] == trained]
            second = {trained: second_parents(answers.records, of_trained, threshold)}
    columns = [
        name
        for name in (*RULES, LEARNED)
        if any(row[name] for row in rows) and (answers.baselines is None or name in answers.baselines)
    ]
    said = {column: links_in(rows, column) for column in columns}
    said |= {name: answer_links(rows, given, second.get(name)) for name, given in systems.items()}
    asked = {row["id"] for row in rows if row["asked"]}
    return Predicted(
        links_in(rows, "parents"),
        said,
        {
            "of_logs": len({row["context_id"] for row in answers.links()}),
            "second_parent": threshold,
            # Of the models: messages whose record was left out, such as one that reveals its answer.
            "without_record": len(asked - {row["id"] for row in rankings}) if systems else None,
        },
    )


def _links(answers: Answers) -> dict[str, Any]:
    """Return the scores of the links of held-out threads; empty without links."""
    found = predicted_links(answers)
    if found is None:
        return {}
    scores = link_scores(found.gold, found.systems, seed=answers.seed, resamples=answers.resamples)
    return {**scores, **found.facts}


def _rankings(answers: Answers) -> list[Row]:
    # A limited evaluation answers some of the records only; the baselines are scored on the same ones.
    records = {record["id"] for record in answers.records}
    return [row for row in answers.rankings() if row["id"] in records]


@dataclass(frozen=True)
class Predicted:
    """Annotated and predicted links, by log, and facts about them.

    Attributes:
        gold: annotated links.
        systems: predicted links by system.
        facts: `of_logs`, the number of logs with links; `second_parent`, the probability from which the most
            trained model's second choice is a parent too, None for never; `without_record`, how many of the
            messages that could be asked have no record, so that the models count as saying "a start".
    """

    gold: Links
    systems: Mapping[str, Links]
    facts: Mapping[str, Any]


def _replies(rankings: Sequence[Row]) -> list[Row]:
    """Return the rows of messages that answer a post; the others start a conversation."""
    return [row for row in rankings if row["gold_ids"]]


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
    """The answers of model and learned fusion as one system, and how they were weighed; both may be empty."""

    predictions: Mapping[str, Mapping[str, Prediction]]
    facts: Mapping[str, Any]


def _combined(answers: Answers, predictions: Mapping[str, Mapping[str, Prediction]]) -> _Together:
    """Combine the most trained system with the learned fusion, if there are records to fit the weights on."""
    if not answers.unseen_records:
        return _Together({}, {})
    weights = fit_weights(answers.unseen_records, answers.unseen_rows)
    system = answers.unseen_rows[0]["system"]
    rows = [row for row in answers.rows if row["system"] == system]
    rankings = _rankings(answers)
    together = combine(answers.records, rows, rankings, weights)
    # How often both together are right, beside each alone, is among the comparisons of all systems. How sure
    # they are shows more, since every comment counts and not only those with another answer.
    alone = fit_learned_alone(answers.unseen_records, answers.unseen_rows)
    known = [record for record in answers.records if set(record["gold"]) & set(record["choices"])]
    bootstrap = ContextBootstrap.over(
        [record["context_id"] for record in known], answers.seed, answers.resamples
    )
    one, other = (brier_scores(known, rows, given) for given in (weights, alone))
    means = [round(float(found.mean()), 6) if known else None for found in (one, other)]
    brier = {"together": means[0], "learned": means[1], "difference": bootstrap.difference(one, other)}
    return _Together({COMBINED: together}, {"system": system, "weights": asdict(weights), "brier": brier})
