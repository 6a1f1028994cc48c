"""Answers to a task's records, and the function that scores them.

This code is separate from the building of records, so that a change of a retriever does not repeat the
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from retrieval.settings.task_registry import TASKS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """Answers of one or more systems to the records of one task.

    Attributes:
        records: the records, as in `records.parquet`.
        rows: one row for each answer: `id` of the record, `system`, `choice` (None if only a text was
            generated), `text` (None if only a choice was made), and where choices have log-likelihoods,
            `normalised_choice`, the best for each of its characters.
        rankings: returns the records' rows of `rankings.parquet`, for a task that has such rows.
        baselines: names of the systems without a model that are scored; None: all that the rankings have.
        links: returns the rows of `links.parquet` of the task, for a task that has such rows.
        mode: mode of the evaluation, which decides the form of the answers.
        seed: seed of the resamples and of every other draw.
        resamples: number of bootstrap resamples behind an interval.
        unseen_records: training records that no evaluated system has seen, to weigh the retriever against the
            model; empty: they are not combined.
        unseen_rows: the answers of the most trained system to them.
    """

    records: Sequence[Row]
    rows: Sequence[Row]
    rankings: Callable[[], Sequence[Row]]
    mode: Literal["choice", "generate", "both"]
    seed: int
    resamples: int
    unseen_records: Sequence[Row] = ()
    unseen_rows: Sequence[Row] = ()
    links: Callable[[], Sequence[Row]] = tuple
    baselines: Collection[str] | None = None

    def by_system(self, column: str) -> dict[str, dict[str, Any]]:
        """Return the answers in one column, `choice` or `text`, by system and record id."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            found.setdefault(row["system"], {})[row["id"]] = row[column]
        return found


class TextScore(Protocol):
    """The type of a function that scores one system's written answers."""

    def __call__(
        self, answers: Mapping[str, str], records: Sequence[Row], *, seed: int, resamples: int
    ) -> dict[str, Any]:
        """Return each measure with its interval, for answers that are given by record id."""
        ...


def text_scores(answers: Answers, score: TextScore) -> dict[str, Any]:
    """Score the written answers of every system: `{"systems": {name: measures}}`."""
    options = {"seed": answers.seed, "resamples": answers.resamples}
    return {
        "systems": {
            name: score(by_id, answers.records, **options)
            for name, by_id in answers.by_system("text").items()
        }
    }


@dataclass(frozen=True)
class RecordValues:
    """The values of the measures for each record, by which two systems are compared record by record.

    Attributes:
        ids: ids of the records.
        contexts: id of the context of each record.
        systems: system to measure to float64[N], in the order of `ids`.
    """

    ids: Sequence[str]
    contexts: Sequence[str]
    systems: Mapping[str, Mapping[str, Any]]


def text_values(
    answers: Answers, values: Callable[[Mapping[str, str], Sequence[Row]], Mapping[str, Any]]
) -> RecordValues:
    """Return the values of the written answers of every system."""
    return RecordValues(
        [record["id"] for record in answers.records],
        [record["context_id"] for record in answers.records],
        {name: values(by_id, answers.records) for name, by_id in answers.by_system("text").items()},
    )


def values_of_records(name: str, answers: Answers) -> RecordValues:
    """Return each record's values of the measures of `score_answers`, for every system."""
    return import_module(f"{TASKS[name].package}.scoring").values(answers)


def comparisons(values: RecordValues, answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """Compare every two systems by each measure, as `compare_systems` does."""
    # Imported here, because it loads numpy and scipy, which a plan of the stage does not need.
    from retrieval.evaluation.comparisons import compare_systems

    return compare_systems(values.contexts, values.systems, seed=answers.seed, resamples=answers.resamples)


def predicted_links(name: str, answers: Answers) -> Any:
    """Return the links that answers to a task's records mean; None for a task without links."""
    find = getattr(import_module(f"{TASKS[name].package}.scoring"), "predicted_links", None)
    return find(answers) if find else None


def right_choices(name: str, records: Sequence[Row], rankings: Sequence[Row]) -> dict[str, list[int]]:
    """Return the numbers of each record's right choices, as `score_answers` counts them.

    Args:
        name: a task whose answers are choices.
        records: records of the task.
        rankings: the records' rows of `rankings.parquet`.

    Returns:
        Record id to numbers from 0; empty where no choice of the prompt is right. Records that the scores of
        answers leave out are not there.
    """
    return import_module(f"{TASKS[name].package}.scoring").right_choices(records, rankings)


def score_answers(name: str, answers: Answers) -> dict[str, Any]:
    """Score answers to a task's records.

    In the result, `systems` maps each system to its measures with intervals.
    """
    # A module of its own, so that the digest of the evaluation's code does not cover the code that builds
    # records.
    return import_module(f"{TASKS[name].package}.scoring").score(answers)
