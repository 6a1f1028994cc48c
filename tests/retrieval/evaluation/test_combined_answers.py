"""Weights of model and learned fusion against an independent optimiser, and the answers of both together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from jora_core.base.errors import InputError
from retrieval.evaluation.answer_scores import Prediction
from retrieval.evaluation.combined_answers import Weights, combine, fit_weights

CHOICES = [f"#{n} Ann" for n in range(1, 5)]
Case = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def comments(n: int, model: float, learned: float, seed: int = 0) -> Case:
    """Comments whose right post follows from two noisy scores, which count as much as the weights say."""
    rng = np.random.default_rng(seed)
    records, rows = [], []
    for number in range(n):
        one, other = rng.normal(size=(2, len(CHOICES))) * 2
        powers = np.exp(model * one + learned * other)
        right = rng.choice(len(CHOICES), p=powers / powers.sum())
        gold = [CHOICES[right]] if number % 10 else [CHOICES[right], CHOICES[right - 1]]
        name = f"c{number}"
        records.append({"id": name, "choices": CHOICES, "gold": gold, "choice_scores": other.tolist()})
        rows.append({"id": name, "choice_logprobs": one.tolist()})
    return records, rows


@pytest.mark.parametrize(("model", "learned"), [(0.5, 1.0), (2.0, 0.3), (0.0, 1.0)])
def test_the_weights_are_those_of_another_optimiser(model: float, learned: float) -> None:
    records, rows = comments(400, model, learned)

    def loss(weights: np.ndarray) -> float:
        total = float(((weights - [0, 1]) ** 2).sum()) / 2
        for record, row in zip(records, rows, strict=True):
            scores = weights[0] * np.array(row["choice_logprobs"]) + weights[1] * np.array(
                record["choice_scores"]
            )
            right = [choice in record["gold"] for choice in CHOICES]
            total += np.logaddexp.reduce(scores) - np.logaddexp.reduce(scores[right])
        return total

    expected = np.maximum(minimize(loss, [0.0, 1.0], tol=1e-10).x, 0)
    found = fit_weights(records, rows)
    np.testing.assert_allclose([found.model, found.learned], expected, atol=2e-4)
    assert found.fitted_on == 400
    assert abs(found.model - model) < 0.3 and abs(found.learned - learned) < 0.3


def test_comments_without_their_parent_in_the_prompt_are_left_out() -> None:
    records, rows = comments(50, 1.0, 1.0)
    lost = [record | {"id": f"lost {n}", "gold": []} for n, record in enumerate(records)]
    more = [row | {"id": f"lost {n}"} for n, row in enumerate(rows)]
    assert fit_weights(records + lost, rows + more) == fit_weights(records, rows)
    with pytest.raises(InputError, match="combine_records"):
        fit_weights(lost, more)


def test_both_decide_and_posts_outside_the_prompt_stay() -> None:
    records = [
        {"id": name, "choices": CHOICES[:2], "context_ids": ["a", "b"], "choice_scores": [-0.5, -1.0]}
        for name in ("model", "fusion", "outside")
    ]
    rows = [
        {"id": name, "choice_logprobs": scores}
        for name, scores in (("model", [-4.0, -0.1]), ("fusion", [-0.7, -0.6]), ("outside", [-4.0, -0.1]))
    ]
    rankings = [
        {
            "id": name,
            "learned": [first, "b"],
            "candidate_ids": ["z", "a", "b"],
            "candidate_authors": ["Zoe", "Ann", "Ann"],
        }
        for name, first in (("model", "a"), ("fusion", "a"), ("outside", "z"))
    ]
    assert combine(records, rows, rankings, Weights(1.0, 1.0, 9)) == {
        "model": Prediction("b", "Ann"),
        "fusion": Prediction("a", "Ann"),
        "outside": Prediction("z", "Zoe"),
    }
    alone = combine(records, rows, rankings, Weights(0.0, 1.0, 9))
    assert [alone[name].post_id for name in ("model", "fusion", "outside")] == ["a", "a", "z"]
