"""The table of retrieval legs: their names, titles and modules.

A leg is one ranking of the candidates of a question. Adding a leg takes two steps: write
`retrieval/search/legs/<name>.py` with a function `rank(query: LegQuery) -> LegRanking`, and add one line to
`LEGS`. The configuration, the web form, the columns of `rankings.parquet`, the report and the code digest of
the stage all read this table.

This module needs the standard library only, because `jora plan` loads it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

#: Package of the modules that rank.
PACKAGE = "retrieval.search.legs"


@dataclass(frozen=True)
class Leg:
    """A retrieval leg: its title in reports, and the dotted name of the module that ranks.

    `searches_documents` means that the leg has an index of a whole corpus. The task `qa` may use such a leg.
    """

    title: str
    module: str
    # The other legs need posts with authors, times and an order, which documents do not have.
    searches_documents: bool = False


#: Legs by the name that a configuration uses. Fusion adds their shares in this order and not in the order of
#: the configuration, because floating-point addition is not associative and rounding must not decide a tie.
LEGS: dict[str, Leg] = {
    "bm25": Leg("BM25", f"{PACKAGE}.bm25", searches_documents=True),
    "dense": Leg("Dense", f"{PACKAGE}.dense", searches_documents=True),
    "recency": Leg("Recency", f"{PACKAGE}.recency"),
    "mention": Leg("Mention", f"{PACKAGE}.mention"),
    "opening": Leg("Opening post", f"{PACKAGE}.opening"),
    "addressed_me": Leg("Addressed me", f"{PACKAGE}.addressed_me"),
    "same_author": Leg("Same author", f"{PACKAGE}.same_author"),
    "partner": Leg("Partner", f"{PACKAGE}.partner"),
}

#: Legs that may search a whole corpus of documents.
DOCUMENT_LEGS = tuple(name for name, leg in LEGS.items() if leg.searches_documents)


def leg_modules() -> tuple[str, ...]:
    """Return the dotted names of the modules of all legs.

    The modules are imported by name when they are used, so a search for `import` statements does not find
    them.
    """
    return tuple(leg.module for leg in LEGS.values())


#: Rankings of which the first that a task has chooses the contexts of its prompts.
CHOOSING_RANKINGS = ("reranked", "learned", "fused")


def choosing_ranking(names: Collection[str]) -> str:
    """Return which of some rankings chooses the contexts of a prompt, by name."""
    return next(name for name in CHOOSING_RANKINGS if name in names)
