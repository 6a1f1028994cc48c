"""Precision, recall and F1, from counts or from two lists of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, each from 0 to 1."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


ZERO = PrecisionRecall(0.0, 0.0)


def of_counts(matched: int, predicted: int, gold: int) -> PrecisionRecall:
    """Return precision and recall of counts. A share of nothing is 0.

    Args:
        matched: number of predicted items that are right.
        predicted: number of predicted items.
        gold: number of right items.
    """
    return PrecisionRecall(matched / predicted if predicted else 0.0, matched / gold if gold else 0.0)


def of_words(predicted: Sequence[str], gold: Sequence[str]) -> PrecisionRecall:
    """Return precision and recall of words, where a word counts as often as it occurs on both sides."""
    return of_counts(sum((Counter(predicted) & Counter(gold)).values()), len(predicted), len(gold))
