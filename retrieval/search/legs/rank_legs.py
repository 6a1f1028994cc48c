"""Compute the rankings of several legs for one comment.

Similarity alone rarely finds the post that a message answers. In IRC, BM25 finds 20 % of the parents at rank
1, because replies share few words with what they answer. People name whom they answer, answer whoever named
them, and continue what they said before; the other legs use that. What each leg finds alone and together is
measured in docs/benchmarks.md, "Retrieval on IRC".
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.settings.legs import LEGS


def rank_legs(names: Collection[str], query: LegQuery) -> dict[str, LegRanking]:
    """Return the ranking of each leg in `names`, in the order of `LEGS`."""
    # In the order of the table, not of `names`: fusion adds floating-point shares in this order.
    return {name: import_module(leg.module).rank(query) for name, leg in LEGS.items() if name in names}
