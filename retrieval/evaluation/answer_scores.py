"""Scores of a model's answers, with confidence intervals.

Threads are scored by directionality, tables by denotation accuracy, documents by SQuAD's exact match and F1
and by measures of special records: without an answer, in scripts without blanks, with quotations.

Directionality (JORA, arXiv:2403.11366, table 2) has four measures. target is the share of answers that name
the right author, reply the share that name the right post, and joint the share that name both.
p(reply|target) is joint / target. Intervals are 95 % bootstrap intervals (`context_bootstrap`). Contexts are
resampled, not records, because the records of one thread are not independent. All systems are scored on the
same resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.measures.denotations import denotation_correct
from retrieval.evaluation.measures.quotations import QuotationCounts, quotation_counts
from retrieval.evaluation.measures.squad import exact_match, f1, normalize_answer
from retrieval.evaluation.measures.unspaced_answers import character_exact_match, character_f1
from retrieval.prompts.answer_matching import final_answer, parse_answer
from retrieval.prompts.answer_styles import quotations
from retrieval.prompts.templates import NO_DOCUMENT, documents_of
from retrieval.settings.task_registry import TASKS
from retrieval.settings.tasks import BASELINES
from retrieval.text.normalize import seeded_hash
from retrieval.text.words import has_unspaced

RESAMPLES = 2000


@dataclass(frozen=True)
class Prediction:
    """A system's answer to a thread record: the id of a post and the name of an author. Each may be None."""

    post_id: str | None
    author: str | None


def prediction_from_answer(answer: str, record: Mapping[str, Any]) -> Prediction:
    """Parse a written answer. `#3 Marta` names the third of the record's `context_ids` and the author Marta.

    The post is None if no post of the record has the number.
    """
    author, number = parse_answer(answer)
    context = record["context_ids"]
    post = context[number - 1] if number is not None and 1 <= number <= len(context) else None
    return Prediction(post, author)


def baseline_predictions(
    rankings: Sequence[Mapping[str, Any]], seed: int = 0, names: Collection[str] | None = None
) -> dict[str, dict[str, Prediction]]:
    """Return the answers of the baselines, by system and record id.

    The baselines are random (a seeded draw among all candidates), opening_post, previous_post, two rules, and
    the candidate that each ranking puts first. A ranking that no row has is left out.

    Args:
        rankings: rows of `rankings.parquet`.
        seed: seed of the draws.
        names: the wanted baselines; None: all.
    """
    found = {name: any(row.get(name) for row in rankings) for name in BASELINES[3:]}
    wanted = [name for name in BASELINES if found.get(name, True) and (names is None or name in names)]
    out: dict[str, dict[str, Prediction]] = {name: {} for name in wanted}
    for row in rankings:
        ids, authors = row["candidate_ids"], row["candidate_authors"]
        by_id = dict(zip(ids, authors, strict=True))
        # By the record's id, not by a generator's next number: a subset of the records gives the same draws.
        drawn = seeded_hash(seed, "random baseline", row["id"]) % len(ids)
        fixed = {
            "random": Prediction(ids[drawn], authors[drawn]),
            "opening_post": Prediction(row["opening_id"], row["opening_author"]),
            "previous_post": Prediction(ids[-1], authors[-1]),
        }
        for name in wanted:
            if name in fixed:
                out[name][row["id"]] = fixed[name]
            elif row[name]:
                out[name][row["id"]] = Prediction(row[name][0], by_id[row[name][0]])
    return out


def directionality(
    predictions: Mapping[str, Mapping[str, Prediction]],
    rankings: Sequence[Mapping[str, Any]],
    *,
    ids: Collection[str] | None = None,
    baselines: Collection[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score the posts and authors that each system names (directionality).

    Args:
        predictions: answers by system and record id; a missing answer counts as wrong.
        rankings: rows of `rankings.parquet` of the scored split.
        ids: ids of the records to score; None: all.
        baselines: names of the baselines; None: all.
        seed: seed of the random baseline and of the resamples.
        resamples: number of resamples.

    Returns:
        `{"systems": {name: scores}, "n", "contexts", "resamples", "seed"}`, the baselines first. `scores` are
        "target@1", "reply@1", "joint", "p(reply|target)" and "p(reply|not target)", each `{value, low, high,
        n}`. The value of a ratio is None if its denominator is 0.
    """
    # Rankings also have rows of tasks whose answers are text; directionality is defined for choices only.
    rows = [
        row
        for row in rankings
        if TASKS[row["task"]].facts.answers == "choice"
        # A message that starts a conversation has no right post; the scores of links count it.
        and row["gold_ids"]
        and (ids is None or row["id"] in ids)
    ]
    systems = baseline_predictions(rows, seed, baselines) | dict(predictions)
    contexts = [row["context_id"] for row in rows]
    right = {name: _right(answers, rows) for name, answers in systems.items()}
    intervals = ContextBootstrap.over(contexts, seed, resamples)
    ones = np.ones(len(rows))
    out: dict[str, Any] = {}
    for name, (target, reply) in right.items():
        joint = target * reply
        out[name] = {
            "target@1": intervals.ratio(target, ones),
            "reply@1": intervals.ratio(reply, ones),
            "joint": intervals.ratio(joint, ones),
            "p(reply|target)": intervals.ratio(joint, target),
            "p(reply|not target)": intervals.ratio(reply - joint, 1 - target),
        }
    return {
        "systems": out,
        "n": len(rows),
        "contexts": len(set(contexts)),
        "resamples": resamples,
        "seed": seed,
    }


def thread_values(
    answers: Mapping[str, Prediction], rows: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Return for each record 1 if an answer names the right author, the right post, or both, else 0.

    Args:
        answers: answer by record id; a missing answer counts as wrong.
        rows: rows of `rankings.parquet`, one for each record.

    Returns:
        Measure to float64[N], in the order of the rows.
    """
    target, reply = _right(answers, rows)
    return {"target@1": target, "reply@1": reply, "joint": target * reply}


def _right(
    answers: Mapping[str, Prediction], rows: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (target, reply): for each row 1.0 if the answer is right, else 0.0."""
    target, reply = np.zeros(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        answer = answers.get(row["id"])
        if answer is None:
            continue
        reply[i] = answer.post_id is not None and answer.post_id in row["gold_ids"]
        if answer.author is not None:
            # A generated name may differ in case or spaces; it names the same person.
            named = _folded(answer.author)
            target[i] = any(named == _folded(author) for author in row["gold_authors"])
    return target, reply


def _folded(author: str) -> str:
    """Return a name in lower case with single spaces, for comparison."""
    return " ".join(author.casefold().split())


def tables_scores(
    answers: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score one system's answers to table questions.

    Args:
        answers: answer by record id; a missing answer counts as wrong.
        records: the records that the answers belong to.
        seed: seed of the resamples.
        resamples: number of resamples.

    Returns:
        `{"denotation_accuracy": {value, low, high, n}}`.
    """
    return _means(tables_values(answers, records), records, seed, resamples)


def tables_values(answers: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return the denotation accuracy of each record, as measure to float64[N]; a missing answer is wrong."""
    right = [
        denotation_correct(final_answer(answers.get(r["id"], "")), r["gold"], r.get("canonical") or None)
        for r in records
    ]
    return {"denotation_accuracy": _array(right)}


def qa_scores(
    answers: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score one system's answers to questions over documents.

    Args:
        answers: answer by record id; a missing answer counts as wrong.
        records: the records that the answers belong to.
        seed: seed of the resamples.
        resamples: number of resamples.

    Returns:
        Measures `{value, low, high, n}`. "exact_match" and "f1" are those of SQuAD 2.0 over all records. The
        others are there if they have something to count: "has_answer_exact_match", "has_answer_f1" and
        "no_answer_accuracy" if some records have no answer in their prompt, "character_exact_match" and
        "character_f1" over records with accepted answers in scripts without blanks, "quotation_verbatim" and
        "quotation_precision" over the quoted spans that the system wrote.
    """
    pairs, values = answer_pairs(answers, records), qa_values(answers, records)
    intervals = ContextBootstrap.over([r["context_id"] for r in records], seed, resamples)
    scores = {name: intervals.ratio(found, np.ones(len(records))) for name, found in values.items()}
    exact, overlap = values["exact_match"], values["f1"]
    answerable = _array([bool(accepted) for _, accepted in pairs])
    if not answerable.all():
        scores["has_answer_exact_match"] = intervals.ratio(exact * answerable, answerable)
        scores["has_answer_f1"] = intervals.ratio(overlap * answerable, answerable)
        scores["no_answer_accuracy"] = intervals.ratio(exact * (1 - answerable), 1 - answerable)
    unspaced = _array([any(map(has_unspaced, accepted)) for _, accepted in pairs])
    if unspaced.any():
        for name, measure in (
            ("character_exact_match", character_exact_match),
            ("character_f1", character_f1),
        ):
            found = [0.0 if text is None else float(measure(text, accepted)) for text, accepted in pairs]
            scores[name] = intervals.ratio(_array(found) * unspaced, unspaced)
    quoted = [_quotations(answers.get(r["id"], ""), r) for r in records]
    spans = _array([counts.spans for counts in quoted])
    if spans.any():
        scores["quotation_verbatim"] = intervals.ratio(_array([c.verbatim for c in quoted]), spans)
        # Prompts of foreign records (instructions) do not say where their documents begin and end.
        known = spans * _array([bool(r["oracle_ids"]) for r in records])
        scores["quotation_precision"] = intervals.ratio(_array([c.right for c in quoted]), known)
    return scores


def qa_values(answers: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return exact match and F1 of each record, as measure to float64[N]; a missing answer is wrong."""
    pairs = answer_pairs(answers, records)
    return {
        "exact_match": _array([text is not None and exact_match(text, gold) for text, gold in pairs]),
        "f1": _array([0.0 if text is None else f1(text, gold) for text, gold in pairs]),
    }


def answer_pairs(
    answers: Mapping[str, str], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str | None, tuple[str, ...]]]:
    """Return the scored text and the accepted answers of each record.

    The text is None for a missing answer. There are no accepted answers where the prompt has none.
    """
    # A missing answer is None and not an empty text, which is right where a question has no answer.
    said = [_scored_text(answers[r["id"]]) if r["id"] in answers else None for r in records]
    gold = [() if _abstains(r["gold"]) else tuple(r["gold"]) for r in records]
    return list(zip(said, gold, strict=True))


def _scored_text(text: str) -> str:
    """Return the scored part of a written answer; "" if it says that the documents have no answer."""
    answer = final_answer(text)
    # SQuAD 2.0 writes "no answer" as an empty text. Here a model says it in words.
    return "" if _abstains([answer]) else answer


def _abstains(answers: Sequence[str]) -> bool:
    """Return whether the only answer is that the documents have none."""
    return len(answers) == 1 and normalize_answer(answers[0]) == normalize_answer(NO_DOCUMENT)


def _quotations(answer: str, record: Mapping[str, Any]) -> QuotationCounts:
    """Count the quoted spans of an answer to a record."""
    if not quotations(answer):
        return QuotationCounts(0, 0, 0)
    ids = record["context_ids"]
    documents = documents_of(record["input"], len(ids))
    right = [text for name, text in zip(ids, documents, strict=True) if name in record["oracle_ids"]]
    return quotation_counts(answer, record["input"], right)


def _array(values: Sequence[float | bool]) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _means(
    values: Mapping[str, np.ndarray], records: Sequence[Mapping[str, Any]], seed: int, resamples: int
) -> dict[str, Any]:
    intervals = ContextBootstrap.over([r["context_id"] for r in records], seed, resamples)
    ones = np.ones(len(records))
    return {measure: intervals.ratio(found, ones) for measure, found in values.items()}
