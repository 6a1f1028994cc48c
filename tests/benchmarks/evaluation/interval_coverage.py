"""How often a 95 % interval of the evaluation holds the truth, on simulated systems whose truth is known.

    python tests/benchmarks/evaluation/interval_coverage.py [--contexts 5 10 20 50] [--repetitions 1000]
        [--json FILE]

Each repetition draws contexts of unequal sizes (lognormal, coefficient of variation 1, mean of 8 records).
Each context has its own probability of a right answer, drawn around the true one with an intraclass
correlation of 0.1, so its records are alike. Two systems are simulated by the probabilities that only the
first, or only the second, answers a record rightly. Intervals are those of `ContextBootstrap`, with 2,000
resamples; plain percentiles of the same resamples stand beside them. The bootstrap's draws of contexts are
the same in all repetitions with equally many contexts. With 1,000 repetitions, a coverage of 95 % is counted
to within 1.4 points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import numpy as np
from harness import at_least_one, machine, print_table, write_result

from retrieval.evaluation.context_bootstrap import ContextBootstrap

RESAMPLES = 2000
RECORDS = 8  # of a context, in the mean
SPREAD = 1.0  # coefficient of variation of the sizes
ALIKE = 0.1  # intraclass correlation


@dataclass(frozen=True)
class Case:
    """What is measured: a system's share of right answers, or the difference of two systems.

    Attributes:
        name: name in the table.
        right: probability that a record is right; of two systems, that only the first one is.
        only_other: probability that only the second system is right; None: one system alone.
        seeds: number of trainings of the first system, whose mean is taken.
        seed_spread: standard deviation between trainings of the probability that a record is right.
    """

    name: str
    right: float
    only_other: float | None = None
    seeds: int = 1
    seed_spread: float = 0.0

    @property
    def truth(self) -> float:
        """The true value."""
        return self.right - (self.only_other or 0.0)


CASES = (
    Case("score 0.03", 0.03),
    Case("score 0.05", 0.05),
    Case("score 0.15", 0.15),
    Case("score 0.50", 0.5),
    Case("score 0.85", 0.85),
    Case("score 0.95", 0.95),
    Case("score 0.97", 0.97),
    Case("difference 0.00, of 0.10 and 0.10", 0.1, 0.1),
    Case("difference 0.00, of 0.03 and 0.03", 0.03, 0.03),
    Case("difference 0.10, of 0.20 and 0.10", 0.2, 0.1),
    Case("difference 0.03, of 0.05 and 0.02", 0.05, 0.02),
    Case("difference 0.20, of 0.30 and 0.10", 0.3, 0.1),
    Case("difference 0.10, of 0.10 and 0.00", 0.1, 0.0),
    Case("score 0.50, mean of 3 seeds", 0.5, None, 3, 0.03),
    Case("score 0.05, mean of 3 seeds", 0.05, None, 3, 0.01),
)


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description="Coverage of 95 %% intervals, clustered and paired")
    parser.add_argument("--contexts", type=at_least_one, nargs="+", default=[5, 10, 20, 50, 200])
    parser.add_argument("--repetitions", type=at_least_one, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    results = [
        coverage(case, contexts, args.repetitions)
        for case in CASES
        for contexts in args.contexts
        if contexts > 1
    ]
    print_table([table_row(case.name, results) for case in CASES])
    settings = {
        **{"resamples": RESAMPLES, "repetitions": args.repetitions},
        **{"records_of_a_context": RECORDS, "variation_of_sizes": SPREAD, "intraclass_correlation": ALIKE},
    }
    ratios = {f"{result['case']}@{result['contexts']}": result["coverage"] for result in results}
    write_result(args.json, about, settings, results, ratios)


def table_row(case: str, results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One row of the printed table: for each number of contexts the coverage, and that of percentiles."""
    cells = {
        f"{one['contexts']} contexts": f"{100 * one['coverage']:.1f} ({100 * one['plain_percentiles']:.1f})"
        for one in results
        if one["case"] == case
    }
    return {"True value": case, **cells}


def coverage(case: Case, contexts: int, repetitions: int, seed: int = 0) -> dict[str, Any]:
    """Count how often the interval of a case holds its truth.

    Args:
        case: what is measured.
        contexts: number of contexts of each repetition.
        repetitions: number of simulated evaluations.
        seed: seed of the simulation.

    Returns:
        `{"case", "contexts", "coverage", "plain_percentiles", "width"}`: shares of the repetitions, and the
        mean width of the interval.
    """
    rng = np.random.default_rng([seed, contexts, CASES.index(case)])
    # As float64, so that a product need not convert them each time.
    draws = ContextBootstrap.over([str(n) for n in range(contexts)], seed, RESAMPLES).draws.astype(np.float64)
    held, plain, widths = [], [], []
    for _ in range(repetitions):
        membership = np.repeat(np.arange(contexts), sizes(rng, contexts))
        given, other = answers(rng, case, membership, contexts)
        one = given.mean(axis=0)
        resampled = ContextBootstrap(membership, draws)
        if case.seeds > 1:
            found = resampled.over_seeds(given)
        elif case.only_other is None:
            found = resampled.ratio(one, np.ones(len(membership)))
        else:
            found = resampled.difference(one, other)
        # Bounds are rounded to six decimals.
        held.append(found["low"] - 1e-6 <= case.truth <= found["high"] + 1e-6)
        widths.append(found["high"] - found["low"])
        low, high = plain_percentiles(draws, membership, one - other)
        plain.append(low - 1e-6 <= case.truth <= high + 1e-6)
    return {
        "case": case.name,
        "contexts": contexts,
        "coverage": float(np.mean(held)),
        "plain_percentiles": float(np.mean(plain)),
        "width": float(np.mean(widths)),
    }


def sizes(rng: np.random.Generator, contexts: int) -> np.ndarray:
    """Draw the number of records of each context, int64[contexts], at least 1."""
    sigma = np.sqrt(np.log(1 + SPREAD**2))
    drawn = rng.lognormal(-(sigma**2) / 2, sigma, size=contexts) * RECORDS
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def answers(
    rng: np.random.Generator, case: Case, membership: np.ndarray, contexts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw whether each record is right.

    Args:
        rng: the generator.
        case: the true probabilities.
        membership: int64[N], the context of each record.
        contexts: number of contexts.

    Returns:
        float64[seeds, N] of the first system, and float64[N] of the second one, zeros if there is none.
    """
    shares = np.array([case.right, case.only_other or 0.0])
    shares = np.append(shares, 1 - shares.sum())
    # A Dirichlet distribution whose draws have the given means and the given correlation within a context.
    alphas = np.maximum(shares * (1 / ALIKE - 1), 1e-12)
    levels = np.cumsum(rng.dirichlet(alphas, size=contexts), axis=1)[membership]
    drawn = rng.random((case.seeds, len(membership)))
    # Each training is a little better or worse everywhere, and each answer is drawn anew.
    one = drawn < levels[:, 0] + rng.normal(0, case.seed_spread, size=(case.seeds, 1))
    other = ~one[0] & (drawn[0] < levels[:, 1]) & (case.only_other is not None)
    return one.astype(np.float64), other.astype(np.float64)


def plain_percentiles(draws: np.ndarray, membership: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the 2.5 % and 97.5 % percentiles of the resampled means, float64[2]."""
    above = np.bincount(membership, weights=values, minlength=draws.shape[1])
    below = np.bincount(membership, minlength=draws.shape[1])
    return np.percentile((draws @ above) / (draws @ below), [2.5, 97.5])


if __name__ == "__main__":
    main()
