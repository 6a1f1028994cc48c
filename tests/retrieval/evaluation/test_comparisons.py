"""Comparisons of systems against SciPy, a plain bootstrap and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval.evaluation.comparisons import (
    compare_seeds,
    compare_systems,
    discordant,
    holm,
    mcnemar,
    verdict,
)
from retrieval.evaluation.context_bootstrap import ContextBootstrap


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(one: int, other: int) -> None:
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand() -> None:
    # The example of Holm's paper's method: 4 · 0.005, 3 · 0.01, 2 · 0.03, and not less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    """The definition: walk from the smallest p, stop at the first one above 0.05 / (number that are left)."""
    order = np.argsort(p, kind="stable")
    rejected = set()
    for place, index in enumerate(order):
        if (len(p) - place) * p[index] >= 0.05:
            break
        rejected.add(index)
    assert {i for i, value in enumerate(holm(p)) if value < 0.05} == rejected


def test_records_that_one_alone_answers() -> None:
    one, other = np.array([1, 1, 0, 0, 1.0]), np.array([1, 0, 1, 0, 0.0])
    assert discordant(one, other) == {"only_one": 2, "only_other": 1, "mcnemar_p": 1.0}
    assert discordant(one, other / 2) == {}


def systems(contexts: int, size: int, better: float) -> tuple[list[str], dict[str, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(4)
    names = [f"t{n % contexts}" for n in range(contexts * size)]
    level = rng.random(contexts)[np.arange(contexts * size) % contexts]
    base = (rng.random(len(names)) < 0.2 + 0.4 * level).astype(float)
    changed = rng.random(len(names))
    tuned = np.where(changed < better, 1.0, np.where(changed > 0.95, 0.0, base))
    noise = np.where(changed > 0.97, 1 - base, base)
    return names, {
        name: {"reply@1": found, "f1": found / 3}
        for name, found in {"base": base, "noise": noise, "tuned": tuned}.items()
    }


def test_every_two_systems_are_compared() -> None:
    contexts, values = systems(60, 12, 0.25)
    found = compare_systems(contexts, values, seed=0, resamples=2000)
    assert list(found) == ["reply@1", "f1"]
    rows = {(row["one"], row["other"]): row for row in found["reply@1"]}
    assert list(rows) == [("noise", "base"), ("tuned", "base"), ("tuned", "noise")]
    said = {pair: row["verdict"] for pair, row in rows.items()}
    assert said == dict(zip(rows, ("not separable", "better", "better"), strict=True))
    for (one, other), row in rows.items():
        difference = values[one]["reply@1"] - values[other]["reply@1"]
        assert row["value"] == pytest.approx(difference.mean(), abs=1e-6)
        assert row["p"] <= row["p_holm"] and (row["n"], row["contexts"]) == (720, 60)
        assert row["mcnemar_p"] == pytest.approx(
            stats.binomtest(row["only_one"], row["only_one"] + row["only_other"]).pvalue
        )
        # Contexts of one size: the clustered test is then the t-test of the contexts' means.
        means = np.array([difference[k::60].mean() for k in range(60)])
        reference = stats.ttest_1samp(means, 0)
        interval = reference.confidence_interval()
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=4e-3)
        assert row["p"] == pytest.approx(reference[1], abs=0.02)
        assert (row["p"] < 0.05) is (row["low"] > 0 or row["high"] < 0)
    assert all("mcnemar_p" not in row for row in found["f1"])


def test_the_order_of_the_systems_turns_the_comparison() -> None:
    contexts, values = systems(20, 5, 0.4)
    (row,) = compare_systems(contexts, {k: values[k] for k in ("base", "tuned")}, seed=1, resamples=500)["f1"]
    (turned,) = compare_systems(contexts, {k: values[k] for k in ("tuned", "base")}, seed=1, resamples=500)[
        "f1"
    ]
    assert (row["verdict"], turned["verdict"]) == ("better", "worse")
    assert (turned["value"], turned["low"], turned["high"]) == (-row["value"], -row["high"], -row["low"])


def test_few_contexts_prove_nothing() -> None:
    """One context has no interval. Several that all differ alike have no spread, but may do so by chance."""
    right, wrong = np.ones(12), np.zeros(12)
    one = ContextBootstrap.over(["t"] * 12, 0, 100)
    assert one.ratio(right, np.ones(12)) == {"value": 1.0, "low": None, "high": None, "n": 12}
    assert one.difference(right, wrong) == {
        "value": 1.0, "low": None, "high": None, "n": 12, "contexts": 1, "p": 1.0,
    }  # fmt: skip
    for contexts, expected in (
        (3, "not separable"),
        (4, "not separable"),
        (6, "not separable"),
        (7, "better"),
    ):
        resampled = ContextBootstrap.over([str(n % contexts) for n in range(contexts * 2)], 0, 100)
        found = resampled.difference(np.ones(contexts * 2), np.zeros(contexts * 2))
        # Without any spread, contexts count as records, each of which has one chance in two.
        by_t = 2 * stats.t.sf(contexts**0.5, contexts - 1)
        assert found["p"] == pytest.approx(max(by_t, 2 / 2**contexts))
        assert verdict(found["value"], found["p"]) == expected and (found["low"] > 0) is (
            expected == "better"
        )
        # Of all 2^contexts ways to exchange the systems, two give such a difference.
        alike = resampled.difference(0.5 + 0.01 * np.arange(contexts * 2) % 0.05, np.zeros(contexts * 2))
        assert alike["p"] == 2 / 2**contexts and alike["low"] > 0
    # Two systems that agree on all records of two contexts may differ anywhere else.
    same = ContextBootstrap.over(["a", "b"] * 6, 0, 100).difference(right, right)
    assert (same["value"], same["p"]) == (0.0, 1.0) and same["high"] == -same["low"] > 0.9
    agreed = ContextBootstrap.over([str(n) for n in range(400)], 0, 100).difference(
        np.ones(400), np.ones(400)
    )
    assert agreed["high"] == pytest.approx(1.966**2 / (400 + 1.966**2), abs=1e-5)
    nothing = ContextBootstrap.over([], 0, 100).difference(np.zeros(0), np.zeros(0))
    assert nothing["value"] is None and verdict(nothing["value"], nothing["p"]) == "not separable"


def test_intervals_of_few_contexts_are_wider_than_percentiles() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 20, size=10)
    contexts = np.repeat(np.arange(10), sizes).astype(str).tolist()
    values = (rng.random(len(contexts)) < np.repeat(rng.random(10), sizes)).astype(float)
    resampled = ContextBootstrap.over(contexts, 0, 4000)
    found = resampled.ratio(values, np.ones(len(contexts)))
    sums = np.array([values[np.array(contexts) == str(k)].sum() for k in range(10)])
    drawn = (resampled.draws @ sums) / (resampled.draws @ sizes)
    share = values.mean()
    # Wilson's interval solves |share - p| = t · √(p (1 - p) / n) for p, with n by the standard error.
    effective = share * (1 - share) / (drawn.var() * 10 / 9)
    few = 2 * 10 / (stats.kurtosis(sums - share * sizes, fisher=False) - 1)
    t = stats.t.ppf(0.975, min(few, sizes.sum() ** 2 / (sizes**2).sum() - 1))
    for p in (found["low"], found["high"]):
        assert abs(share - p) == pytest.approx(t * np.sqrt(p * (1 - p) / effective), abs=1e-5)
    assert found["low"] < share < found["high"]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found["high"] - found["low"] > 1.15 * (high - low)


def test_all_right_is_no_certainty() -> None:
    """As many contexts without a mistake as there are say how many mistakes there may be."""
    for contexts, least in ((2, 0.0), (5, 0.3), (50, 0.9)):
        resampled = ContextBootstrap.over([str(n % contexts) for n in range(100)], 0, 200)
        found = resampled.ratio(np.ones(100), np.ones(100))
        assert found["value"] == found["high"] == 1.0
        assert least < found["low"] < 1 - 1 / contexts / 2
        nothing = resampled.ratio(np.zeros(100), np.ones(100))
        assert (nothing["low"], nothing["high"]) == (0.0, pytest.approx(1 - found["low"], abs=1e-6))
    with pytest.raises(ValueError, match="between 0 and 1"):
        resampled.ratio(np.full(100, 2.0), np.ones(100))


def test_the_interval_over_seeds_holds_both_sources() -> None:
    """The sum of both variances, and of their degrees of freedom, by hand."""
    contexts, values = systems(60, 12, 0.3)
    base = values["base"]["reply@1"]
    tuned = np.stack([np.where(np.arange(720) % 10 < k, 1.0, base) for k in (1, 2, 4)])
    stacked = {"base": {"reply@1": np.stack([base] * 3)}, "tuned": {"reply@1": tuned}}
    found = compare_seeds(contexts, stacked, "tuned", seed=0, resamples=4000)["reply@1"]
    mean = found["systems"]["tuned"]
    by_seed = tuned.mean(axis=1)
    assert mean["by_seed"] == pytest.approx(by_seed, abs=1e-6)
    of_contexts = np.array([tuned.mean(axis=0)[k::60].mean() for k in range(60)]).var(ddof=1) / 60
    of_seeds = by_seed.var(ddof=1) / 3
    # The contexts are as many as they seem: their means have a smaller kurtosis than normal ones.
    freedom = (of_contexts + of_seeds) ** 2 / (of_contexts**2 / 59 + of_seeds**2 / 2)
    assert 2 < freedom < 59
    share = tuned.mean()
    for p in (mean["low"], mean["high"]):
        error = np.sqrt((of_contexts + of_seeds) * p * (1 - p) / (share * (1 - share)))
        assert abs(p - share) == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=0.04)
    # Seeds that all give the same add nothing.
    alone = ContextBootstrap.over(contexts, 0, 4000).ratio(base, np.ones(720))
    same = found["systems"]["base"]
    assert (same["low"], same["high"]) == (alone["low"], alone["high"]) and same["spread"] == 0
    (row,) = found["comparisons"]
    assert (row["one"], row["other"]) == ("tuned", "base")
    assert row["value"] == pytest.approx(mean["value"] - same["value"], abs=2e-6)


def test_a_paired_interval_is_that_of_tango() -> None:
    """Its bounds solve the paper's equation, by a search over all probabilities; a record is a context."""
    for gained, lost, n in ((9, 16, 100), (0, 2, 40), (12, 0, 60)):
        values = np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost])
        found = ContextBootstrap.over([str(k) for k in range(n)], 0, 20000)
        got = found.difference(np.maximum(values, 0), np.maximum(-values, 0))
        kurtosis = stats.kurtosis(values, fisher=False)
        t = stats.t.ppf(0.975, min(n - 1, max(6, 2 * n / (kurtosis - 1))))
        # As many records as there are, but for the factor n / (n - 1).
        for bound in (got["low"], got["high"]):
            # The likeliest share of records that only the other has right, if the difference is the bound.
            tried = np.linspace(max(0, -bound), (1 - bound) / 2, 200_001)
            with np.errstate(divide="ignore", invalid="ignore"):
                likely = (
                    np.where(gained, gained * np.log(tried + bound), 0)
                    + np.where(lost, lost * np.log(tried), 0)
                    + (n - gained - lost) * np.log(1 - 2 * tried - bound)
                )
            only_other = tried[np.nanargmax(likely)]
            variance = 2 * only_other + bound - bound**2
            statistic = abs((gained - lost) / n - bound) / np.sqrt(variance / (n - 1))
            assert statistic == pytest.approx(t, rel=0.02), (gained, lost, n, bound)


def test_rare_answers_in_few_contexts_count_as_few() -> None:
    """All right answers are in two of 40 contexts, so the variance is known as badly as from two."""
    contexts = np.repeat(np.arange(40), 8).astype(str).tolist()
    rare = np.isin(np.arange(320), (0, 1, 9)).astype(float)
    spread = np.isin(np.arange(320) % 8, (0,)) & (np.arange(320) < 24)
    one, other = (
        ContextBootstrap.over(contexts, 0, 4000).ratio(values, np.ones(320))
        for values in (rare, spread.astype(float))
    )
    assert one["value"] == other["value"] == pytest.approx(3 / 320, abs=1e-6)
    assert one["high"] > 1.2 * other["high"]
