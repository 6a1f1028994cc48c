"""The input and the output of every leg.

A leg module has one public function `rank(query: LegQuery) -> LegRanking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retrieval.corpus.types import Post


@dataclass(frozen=True)
class LegQuery:
    """The input of a leg: a comment and the earlier posts that it may answer, its candidates.

    `candidates` are in time order; a place is an index into them. `first_place` is the place of the first
    candidate in its thread, so 0 means that the candidates begin with the opening post. `similarities` has,
    by leg name, the scores float64[len(candidates)] of each leg that scores texts with its own index.
    """

    comment: Post
    candidates: Sequence[Post]
    first_place: int = 0
    similarities: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class LegRanking:
    """The ranking of one leg: `places` int64[M], best first, with their `scores` float64[M], or None.

    A leg may rank all candidates, some of them, or none.
    """

    places: np.ndarray
    scores: np.ndarray | None = None

    def counted(self) -> LegRanking:
        """Return the part of the ranking that a fusion uses: places with a score above zero.

        A ranking without scores is returned whole.

        Places with score zero share no word with the query. They are in time order, which is no evidence.
        """
        if self.scores is None:
            return self
        # A cosine of zero or below counts as not found, too.
        above = self.scores > 0
        return LegRanking(self.places[above], self.scores[above])


def rank_by_score(scores: np.ndarray) -> LegRanking:
    """Rank all places by their scores float64[N], best first. Of equal scores, the earlier place is first."""
    # lexsort sorts by its last key first. The place as second key makes ties deterministic.
    order = np.lexsort((np.arange(len(scores)), -scores))
    return LegRanking(order, scores[order])
