"""Answers to a task's records, and how a task scores them.

Apart from how records are built, so that a change of a retriever is no reason to answer and score again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from retrieval.settings.task_registry import TASKS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """Answers of some systems to records of one task.

    Attributes:
        records: the records, as in `records.parquet`.
        rows: an answer each: `id` of the record, `system`, `choice` (None where only text was generated),
            `text` (None where only a choice was made).
        rankings: reads the records' rows of `rankings.parquet`, for a task that is ranked.
        mode: how the records were answered.
        seed: decides the resamples, and whatever is drawn.
        resamples: number of bootstrap resamples behind an interval.
    """

    records: Sequence[Row]
    rows: Sequence[Row]
    rankings: Callable[[], Sequence[Row]]
    mode: Literal["choice", "generate", "both"]
    seed: int
    resamples: int

    def by_system(self, column: str) -> dict[str, dict[str, Any]]:
        """Return the answers in a column, `choice` or `text`: system → record id → answer."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            found.setdefault(row["system"], {})[row["id"]] = row[column]
        return found


class TextScore(Protocol):
    """Scores of one system's written answers."""

    def __call__(
        self, answers: Mapping[str, str], records: Sequence[Row], *, seed: int, resamples: int
    ) -> dict[str, Any]:
        """Return each measure with its interval, for answers by record id."""
        ...


def text_scores(answers: Answers, score: TextScore) -> dict[str, Any]:
    """Return `{"systems": {name: measures}}` of written answers."""
    options = {"seed": answers.seed, "resamples": answers.resamples}
    return {
        "systems": {
            name: score(by_id, answers.records, **options)
            for name, by_id in answers.by_system("text").items()
        }
    }


def score_answers(name: str, answers: Answers) -> dict[str, Any]:
    """Score answers to a task's records; `systems` maps each system to its measures with intervals."""
    # A module of its own, so that the digest of the evaluation's code does not cover the code that builds
    # records.
    return import_module(f"{TASKS[name].package}.scoring").score(answers)
