"""Calibration by hand, of systems that are calibrated by construction, and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrieval.evaluation.calibration import calibration, calibrations, choice_probabilities


def test_the_probability_is_a_share_of_all_choices() -> None:
    found = choice_probabilities([[-1.0], [-2.0, -2.0], [math.log(0.03), math.log(0.01)], [-4000.0, -4001.0]])
    assert found == pytest.approx([1.0, 0.5, 0.75, 1 / (1 + math.exp(-1))])


def test_by_hand() -> None:
    probabilities = np.array([0.95, 0.91, 0.55, 0.6, 0.2])
    right = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    found = calibration(probabilities, right)
    assert found["bins"] == [
        {"from": 0.1, "to": 0.2, "n": 1, "probability": 0.2, "accuracy": 0.0},
        {"from": 0.5, "to": 0.6, "n": 2, "probability": 0.575, "accuracy": 0.5},
        {"from": 0.9, "to": 1.0, "n": 2, "probability": 0.93, "accuracy": 0.5},
    ]
    error = (1 * 0.2 + 2 * 0.075 + 2 * 0.43) / 5
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    surest = {
        row["share"]: (row["n"], row["accuracy"], row["least_probability"]) for row in found["selective"]
    }
    assert surest[0.2] == (1, 1.0, 0.95) and surest[0.4] == (2, 0.5, 0.91)
    assert surest[0.6] == (3, pytest.approx(1 / 3, abs=1e-6), 0.6) and surest[1.0] == (5, 0.4, 0.2)
    assert calibration(np.zeros(0), np.zeros(0)) == {
        "n": 0, "expected_calibration_error": None, "bins": [], "selective": [],
    }  # fmt: skip


def test_answers_of_equal_probability_have_no_order() -> None:
    right = np.array([1.0, 1.0, 0.0, 0.0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        found = calibration(np.full(4, 0.5), right[order])
        assert {row["accuracy"] for row in found["selective"]} == {0.5}


def test_a_calibrated_system_and_an_overconfident_one() -> None:
    rng = np.random.default_rng(0)
    probabilities = 1 - rng.random(20000)
    right = (rng.random(20000) < probabilities).astype(float)
    found = calibration(probabilities, right)
    assert found["expected_calibration_error"] < 0.012
    assert all(abs(row["probability"] - row["accuracy"]) < 0.03 for row in found["bins"])
    # The surest tenth is right 95 times of 100, all answers half of the time.
    accuracies = [row["accuracy"] for row in found["selective"]]
    assert accuracies[0] == pytest.approx(0.95, abs=0.02) and accuracies[-1] == pytest.approx(0.5, abs=0.02)
    assert accuracies == sorted(accuracies, reverse=True)
    sure = np.sqrt(probabilities)
    wrong = calibration(sure, right)
    # Σ over bins of |Σ right - Σ probability|, by a loop.
    expected = sum(
        abs(sum(r - p for p, r in zip(sure, right, strict=True) if k / 10 < p <= (k + 1) / 10))
        for k in range(10)
    )
    assert wrong["expected_calibration_error"] == pytest.approx(expected / 20000, abs=1e-6)
    assert wrong["expected_calibration_error"] > 0.15


def test_systems_that_wrote_freely_are_left_out() -> None:
    rows = [
        {"id": "a", "system": "base", "choice_logprobs": [-1.0, -1.0]},
        {"id": "b", "system": "base", "choice_logprobs": []},
        {"id": "starts a conversation", "system": "base", "choice_logprobs": [-0.1, -3.0]},
        {"id": "a", "system": "written", "choice_logprobs": None},
    ]
    found = calibrations(rows, {"base": {"a": 1.0, "b": 0.0}})
    assert list(found) == ["base"] and found["base"]["n"] == 1
    assert found["base"]["expected_calibration_error"] == 0.5
