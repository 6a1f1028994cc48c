"""Scores of answers to questions over documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retrieval.evaluation.answer_scores import answer_pairs, qa_scores, qa_values
from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.measures.cited_facts import cited_facts, joint_values
from retrieval.prompts.answer_styles import quotations
from retrieval.tasks.answers import Answers, RecordValues, Row, text_scores, text_values
from retrieval.text.supporting_facts import facts_of, shown_sentences

_JOINT = "HotpotQA's answer, supporting-fact and joint scores"


def score(answers: Answers) -> dict[str, Any]:
    """Return the measures of every system: exact match, F1, and those of special records.

    `left_out` says why HotpotQA's scores are not there. In a build with questions that a model made,
    `question_origins` has the scores of these questions and of those by people apart.
    """
    scores = text_scores(answers, qa_scores)
    if any("synthetic" in record for record in answers.records):
        scores["question_origins"] = _by_origin(answers)
    reason = _without_joint_scores(answers)
    if reason:
        return scores | {"left_out": {"qa": [f"{_JOINT}: {reason}"]}}
    records = [record for record in answers.records if _has_facts(record)]
    intervals = ContextBootstrap.over(
        [record["context_id"] for record in records], answers.seed, answers.resamples
    )
    ones = np.ones(len(records))
    for name, given in answers.by_system("text").items():
        values = _joint_values(given, records)
        scores["systems"][name] |= {
            measure: intervals.ratio(found, ones) for measure, found in values.items()
        }
    return scores


def _by_origin(answers: Answers) -> Mapping[str, Any]:
    by_origin: dict[str, Any] = {}
    for name, synthetic in (("human", False), ("synthetic", True)):
        records = [record for record in answers.records if record.get("synthetic", False) is synthetic]
        if records:
            scores = text_scores(replace(answers, records=records), qa_scores)
            by_origin[name] = {"records": len(records), **scores}
    return by_origin


def values(answers: Answers) -> RecordValues:
    """Return the measures of every system for each record.

    HotpotQA's scores are among them if every record has supporting facts.
    """
    found = text_values(answers, qa_values)
    if _without_joint_scores(answers) or not all(map(_has_facts, answers.records)):
        return found
    given = answers.by_system("text")
    return RecordValues(
        found.ids,
        found.contexts,
        {
            name: {**measures, **_joint_values(given[name], answers.records)}
            for name, measures in found.systems.items()
        },
    )


def _without_joint_scores(answers: Answers) -> str:
    """Return why there are no scores of HotpotQA; "" if there are."""
    if not any(record.get("facts") for record in answers.records):
        return "the source names no supporting facts (HotpotQA's layout does)"
    if not any(map(_has_facts, answers.records)):
        return "no scored question with supporting facts has its documents in the prompt"
    if not any(quotations(text) for given in answers.by_system("text").values() for text in given.values()):
        return "no system quotes, and quoted sentences are facts; set context.qa.answer_style to quote"
    return ""


def _has_facts(record: Row) -> bool:
    """Return whether a record has supporting facts and an accepted answer, which is not an abstention."""
    ((_, accepted),) = answer_pairs({}, [record])
    return bool(record.get("facts")) and bool(accepted)


def _joint_values(given: Mapping[str, str], records: Sequence[Row]) -> dict[str, np.ndarray]:
    pairs = answer_pairs(given, records)
    return joint_values(
        [said for said, _ in pairs],
        [accepted for _, accepted in pairs],
        [
            cited_facts(given.get(record["id"], ""), record["input"], shown_sentences(record["sentences"]))
            for record in records
        ],
        [facts_of(record["facts"]) for record in records],
    )
