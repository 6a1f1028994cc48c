"""Retriever and model together: fitted weights against another optimiser, joins by hand, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from jora_core.base.errors import InputError
from retrieval.evaluation.answer_scores import Prediction, paired_difference
from retrieval.evaluation.combined_system import (
    RETRIEVER_ALONE,
    ScoredCandidates,
    chosen_posts,
    cross_fitted_weights,
    fit_weights,
    model_alone,
    scored_candidates,
)

TRUE = (0.8, 0.6, 0.5)


def synthetic(n: int, seed: int = 0) -> ScoredCandidates:
    """Messages with five to nine candidates, of which the last four are in the prompt.

    The right one is drawn by the weights `TRUE`.
    """
    rng = np.random.default_rng(seed)
    size = rng.integers(5, 10, n)
    present = np.arange(9) < size[:, None]
    shown = present & (np.arange(9) >= size[:, None] - 4)
    retriever = np.where(present, rng.normal(0, 1.5, (n, 9)), -np.inf)
    retriever -= np.logaddexp.reduce(retriever, axis=1, keepdims=True)
    model = np.where(shown, rng.normal(0, 2, (n, 9)), -np.inf)
    model = np.where(shown, model - np.logaddexp.reduce(model, axis=1, keepdims=True), 0)
    scores = np.where(present, TRUE[0] * retriever + TRUE[1] * model + TRUE[2] * shown, -np.inf)
    best = np.argmax(scores + rng.gumbel(size=scores.shape), axis=1)
    posts = tuple(tuple(f"p{k}" for k in range(number)) for number in size.tolist())
    return ScoredCandidates(
        tuple(f"r{k}" for k in range(n)),
        tuple(f"t{k % 20}" for k in range(n)),
        posts,
        posts,
        retriever,
        model,
        shown,
        np.eye(9, dtype=bool)[best],
    )


def rows_of(candidates: ScoredCandidates) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "context_id": context,
            "gold_ids": [f"p{int(np.argmax(right))}"],
            "gold_authors": [f"p{int(np.argmax(right))}"],
        }
        for name, context, right in zip(candidates.ids, candidates.contexts, candidates.right, strict=True)
    ]


def test_the_weights_have_the_largest_likelihood() -> None:
    candidates = synthetic(1500)
    found = fit_weights(candidates)
    features, present = candidates.features, np.isfinite(candidates.retriever)

    def loss(weights: np.ndarray) -> float:
        scores = np.where(present, features @ weights, -np.inf)
        log_p = scores[candidates.right] - np.logaddexp.reduce(scores, axis=1)
        return float(-log_p.sum() + ((weights - np.array(RETRIEVER_ALONE)) ** 2).sum() / 2)

    other = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    assert found == pytest.approx(other.x, abs=1e-4)
    assert found == pytest.approx(TRUE, abs=0.2)


def test_together_beats_both_on_unseen_messages() -> None:
    unseen = synthetic(2000, seed=1)
    together = chosen_posts(unseen, fit_weights(synthetic(1500)))
    rankings = rows_of(unseen)
    alone = chosen_posts(unseen, RETRIEVER_ALONE)
    for other in (alone, model_alone(unseen)):
        found = paired_difference(together, other, rankings)
        assert found["value"] > found["low"] > 0 and found["p"] < 0.01
        wins = (found["only_first"] - found["only_second"]) / 2000
        assert found["value"] == pytest.approx(wins, abs=1e-6)
    # A model that says nothing changes nothing.
    silent = replace(synthetic(1500), model=np.zeros((1500, 9)), shown=np.zeros((1500, 9), dtype=bool))
    weights = fit_weights(silent)
    nothing = replace(unseen, model=np.zeros((2000, 9)), shown=np.zeros((2000, 9), dtype=bool))
    assert chosen_posts(nothing, weights) == alone
    equal = paired_difference(alone, dict(alone), rankings)
    assert (equal["value"], equal["low"], equal["high"], equal["p"]) == (0, 0, 0, 1)


def test_the_p_value_counts_contexts_and_not_records() -> None:
    """With one context, chance always gives a difference as large, whatever the number of records."""
    rows = [{"id": f"r{k}", "context_id": "t", "gold_ids": ["1"], "gold_authors": ["A"]} for k in range(500)]
    right, wrong = ({row["id"]: Prediction(post, "A") for row in rows} for post in ("1", "2"))
    assert paired_difference(right, wrong, rows)["p"] == 1
    many = [row | {"context_id": str(k)} for k, row in enumerate(rows[:8])]
    found = paired_difference(right, wrong, many, resamples=20_000)
    # Of 2^8 assignments of signs, two give a difference as large.
    assert found["value"] == 1 and found["p"] == pytest.approx(2 / 2**8, abs=2e-3)


def test_weights_of_a_context_are_fitted_without_it() -> None:
    candidates = synthetic(400)
    weights = cross_fitted_weights(candidates)
    own = np.array(candidates.contexts) == "t3"
    expected = fit_weights(candidates.take(np.flatnonzero(~own)))
    assert weights.shape == (400, 3) and (weights[own] == expected).all()
    assert len(np.unique(weights, axis=0)) == 20


def test_scores_are_joined_by_record() -> None:
    record = {"id": "r", "context_id": "t", "context_ids": ["b", "d"], "choices": ["#1 B", "#2 D", "none"]}
    ranking = {
        "id": "r",
        "candidate_ids": ["a", "b", "c", "d"],
        "candidate_authors": ["A", "B", "C", "D"],
        "gold_ids": ["d", "before the window"],
        "learned_scores": [-1.0, -2.0, -3.0, -4.0, -0.5],
    }
    answer = {"id": "r", "choice_logprobs": [-1.0, -3.0, -2.0]}
    found = scored_candidates([record], [ranking], [answer])
    assert found.retriever.tolist() == [[-1, -2, -3, -4]]
    assert found.shown.tolist() == [[False, True, False, True]]
    assert found.right.tolist() == [[False, False, False, True]]
    total = np.log(np.exp([-1, -3, -2]).sum())
    assert found.model == pytest.approx(np.array([[0, -1 - total, 0, -3 - total]]))
    assert model_alone(found) == {"r": Prediction("b", "B")}
    assert chosen_posts(found, RETRIEVER_ALONE) == {"r": Prediction("a", "A")}
    assert chosen_posts(found, (0, 0, 0)) == {"r": Prediction("d", "D")}
    for records, rankings, answers, said in (
        ([], [ranking], [answer], "no record or ranking"),
        ([record], [ranking | {"learned_scores": []}], [answer], "build with fusion: learned"),
        ([record], [ranking], [{"id": "r"}], "no choice_logprobs for its 3 choices"),
    ):
        with pytest.raises(InputError, match=said):
            scored_candidates(records, rankings, answers)
    with pytest.raises(InputError, match=r"at least 50 replies whose parent is a candidate.*; found 1"):
        fit_weights(found)
