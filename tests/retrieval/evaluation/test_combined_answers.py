"""Weights of model and learned fusion against an independent optimiser, and the answers of both together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from jora_core.base.errors import InputError
from retrieval.evaluation.answer_scores import Prediction
from retrieval.evaluation.combined_answers import (
    Weights,
    brier_scores,
    combine,
    fit_learned_alone,
    fit_weights,
)

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


def test_the_weight_of_the_fusion_alone_and_brier_scores() -> None:
    # The fusion is twice as sure as it should be, and the model tells nothing.
    records, rows = comments(400, 0.0, 0.5)
    alone = fit_learned_alone(records, rows)
    assert alone.model == 0 and alone.learned == pytest.approx(0.5, abs=0.1) and alone.fitted_on == 400
    assert alone.learned == pytest.approx(fit_weights(records, rows).learned, abs=0.05)
    found = brier_scores(records, rows, alone)
    for record, score in list(zip(records, found, strict=True))[:20]:
        p = np.exp(alone.learned * np.array(record["choice_scores"]))
        right = np.array([choice in record["gold"] for choice in CHOICES])
        assert score == pytest.approx(((p / p.sum() - right / right.sum()) ** 2).sum() / 2)
    # The fitted weight scores better than one that is too sure.
    assert found.mean() < brier_scores(records, rows, Weights(0.0, 1.0, 0)).mean()


def test_channel_scores_of_a_comment_have_one_spread() -> None:
    records, rows = comments(200, 0.5, 1.0)
    channel = [record | {"choice_inputs": ["x"] * len(CHOICES)} for record in records]
    # Short comments have wide spreads: other factors and other means change nothing.
    rng = np.random.default_rng(1)
    wide = [
        {**row, "choice_logprobs": (np.array(row["choice_logprobs"]) * rng.uniform(0.2, 5) - 9).tolist()}
        for row in rows
    ]
    found, again = fit_weights(channel, rows), fit_weights(channel, wide)
    assert (found.model, found.learned) == pytest.approx((again.model, again.learned), abs=1e-5)
    assert found.model != pytest.approx(fit_weights(records, rows).model, abs=0.05)
    assert brier_scores(channel, wide, found) == pytest.approx(brier_scores(channel, rows, found))
    # Equal scores of all posts tell nothing.
    flat = [{**row, "choice_logprobs": [-3.0] * len(CHOICES)} for row in rows]
    assert fit_weights(channel, flat).model == 0


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
