"""Select the best k of an array of scores."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return int64[min(k, N)]: the places of the largest of N scores, best first.

    Of equal scores, the earlier place is first.
    """
    n = len(scores)
    k = min(k, n)
    if k <= 0:
        return np.zeros(0, dtype=np.int64)
    if k < n:
        # A partition is linear in N, a sort is not.
        kth_best = np.partition(scores, n - k)[n - k]
        above = np.flatnonzero(scores > kth_best)
        # Of the scores equal to the k-th best, only the earliest may enter.
        places = np.concatenate([above, np.flatnonzero(scores == kth_best)[: k - len(above)]])
    else:
        places = np.arange(n)
    return places[np.lexsort((places, -scores[places]))]
