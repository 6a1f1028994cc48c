"""Scores with intervals: directionality in threads, denotation accuracy in tables, exact match and F1 in
documents.

Directionality (JORA, arXiv:2403.11366, table 2): did the model name the author whom the comment answers
(target), the post itself (reply), both (joint), and how often the post where the author was right,
p(reply|target) = joint/target. Intervals are 95 % percentile bootstrap over contexts, since the records of
one thread are not independent; all systems see the same resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.prompts.answer_matching import (
    denotation_correct,
    exact_match,
    final_answer,
    parse_answer,
    token_f1,
)
from retrieval.settings.task_registry import TASKS
from retrieval.text.normalize import seeded_hash

BASELINES = ("random", "opening_post", "previous_post", "bm25")
RESAMPLES = 2000
_CHUNK = 250


@dataclass(frozen=True)
class Prediction:
    """What a system answered: the post it means, if any, and the author it names, if any."""

    post_id: str | None
    author: str | None


def prediction_from_answer(answer: str, record: Mapping[str, Any]) -> Prediction:
    """Reads `#3 Marta` against a record's `context_ids`; a number without a post names no post."""
    author, number = parse_answer(answer)
    context = record["context_ids"]
    post = context[number - 1] if number is not None and 1 <= number <= len(context) else None
    return Prediction(post, author)


def baseline_predictions(
    rankings: Sequence[Mapping[str, Any]], seed: int = 0
) -> dict[str, dict[str, Prediction]]:
    """What the four systems without a model answer: random (a seeded draw among all candidates),
    opening_post, previous_post, bm25 (the candidate most like the comment).
    """
    out: dict[str, dict[str, Prediction]] = {name: {} for name in BASELINES}
    for row in rankings:
        ids, authors = row["candidate_ids"], row["candidate_authors"]
        by_id = dict(zip(ids, authors, strict=True))
        drawn = seeded_hash(seed, "random baseline", row["id"]) % len(ids)
        best = row["bm25"][0]
        out["random"][row["id"]] = Prediction(ids[drawn], authors[drawn])
        out["opening_post"][row["id"]] = Prediction(row["opening_id"], row["opening_author"])
        out["previous_post"][row["id"]] = Prediction(ids[-1], authors[-1])
        out["bm25"][row["id"]] = Prediction(best, by_id[best])
    return out


def directionality(
    predictions: Mapping[str, Mapping[str, Prediction]],
    rankings: Sequence[Mapping[str, Any]],
    *,
    ids: Collection[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`{"systems": {name: {"target@1" | "reply@1" | "joint" | "p(reply|target)": {value, low, high, n}}},
    …}`.

    `predictions` maps systems to answers by record id; `rankings` are the thread rows of `rankings.parquet`
    of the split to be judged. Every row counts (those in `ids`, if given), and a missing answer is a wrong
    one. The baselines come first. A ratio over nothing is None.
    """
    rows = [
        row
        for row in rankings
        if TASKS[row["task"]].facts.answers == "choice" and (ids is None or row["id"] in ids)
    ]
    systems = baseline_predictions(rows, seed) | dict(predictions)
    contexts = [row["context_id"] for row in rows]
    right = {name: _right(answers, rows) for name, answers in systems.items()}
    intervals = _Bootstrap.over(contexts, seed, resamples)
    ones = np.ones(len(rows))
    out: dict[str, Any] = {}
    for name, (target, reply) in right.items():
        joint = target * reply
        out[name] = {
            "target@1": intervals.ratio(target, ones),
            "reply@1": intervals.ratio(reply, ones),
            "joint": intervals.ratio(joint, ones),
            "p(reply|target)": intervals.ratio(joint, target),
        }
    return {
        "systems": out,
        "n": len(rows),
        "contexts": len(set(contexts)),
        "resamples": resamples,
        "seed": seed,
    }


def _right(
    answers: Mapping[str, Prediction], rows: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """(target, reply): float64 zeros and ones, a number a row."""
    target, reply = np.zeros(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        answer = answers.get(row["id"])
        if answer is None:
            continue
        reply[i] = answer.post_id is not None and answer.post_id in row["gold_ids"]
        if answer.author is not None:
            said = _name(answer.author)
            target[i] = any(said == _name(author) for author in row["gold_authors"])
    return target, reply


def _name(author: str) -> str:
    return " ".join(author.casefold().split())


@dataclass(frozen=True)
class _Bootstrap:
    """Resampled contexts: `membership` int64[N] gives each record's context, `draws` float64[resamples,
    contexts] how often each context was drawn.
    """

    membership: np.ndarray
    draws: np.ndarray

    @classmethod
    def over(cls, contexts: Sequence[str], seed: int, resamples: int) -> _Bootstrap:
        names, membership = np.unique(np.array(contexts, dtype=object).astype(str), return_inverse=True)
        n = len(names)
        if not n:
            return cls(membership, np.zeros((resamples, 0)))
        rng = np.random.default_rng(seed)
        parts = [
            rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - at)).astype(np.float32)
            for at in range(0, resamples, _CHUNK)
        ]
        return cls(membership, np.concatenate(parts))

    def ratio(self, above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
        """Σabove/Σbelow over records with its 95 % interval; n is Σbelow, the records it speaks of."""
        total = float(below.sum())
        n = round(total)
        if total == 0:
            return {"value": None, "low": None, "high": None, "n": 0}
        width = self.draws.shape[1]
        up = self.draws @ np.bincount(self.membership, weights=above, minlength=width)
        down = self.draws @ np.bincount(self.membership, weights=below, minlength=width)
        drawn = up[down > 0] / down[down > 0]
        low, high = np.percentile(drawn, [2.5, 97.5])
        value = float(above.sum()) / total
        return {"value": round(value, 6), "low": round(float(low), 6), "high": round(float(high), 6), "n": n}


def tables_scores(
    answers: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`{"denotation_accuracy": {value, low, high, n}}` of one system's answers by record id; missing is
    wrong.
    """
    right = [denotation_correct(final_answer(answers.get(r["id"], "")), r["gold"]) for r in records]
    return {"denotation_accuracy": _mean(right, records, seed, resamples)}


def qa_scores(
    answers: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`{"exact_match": …, "f1": …}` of one system's answers by record id; missing is wrong."""
    said = {name: final_answer(text) for name, text in answers.items()}
    exact = [exact_match(said[r["id"]], r["gold"]) if r["id"] in said else False for r in records]
    overlap = [token_f1(said[r["id"]], r["gold"]) if r["id"] in said else 0.0 for r in records]
    return {
        "exact_match": _mean(exact, records, seed, resamples),
        "f1": _mean(overlap, records, seed, resamples),
    }


def _mean(
    values: Sequence[float | bool], records: Sequence[Mapping[str, Any]], seed: int, resamples: int
) -> dict[str, Any]:
    intervals = _Bootstrap.over([r["context_id"] for r in records], seed, resamples)
    return intervals.ratio(np.asarray(values, dtype=np.float64), np.ones(len(records)))
