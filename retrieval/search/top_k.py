"""The best k of an array of scores."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """int64[min(k, D)]: places of the largest scores, best first, ties by the earlier place."""
    n = len(scores)
    k = min(k, n)
    if k <= 0:
        return np.zeros(0, dtype=np.int64)
    if k < n:
        bar = np.partition(scores, n - k)[n - k]
        above = np.flatnonzero(scores > bar)
        # Of those that tie at the bar, only the earliest may enter.
        places = np.concatenate([above, np.flatnonzero(scores == bar)[: k - len(above)]])
    else:
        places = np.arange(n)
    return places[np.lexsort((places, -scores[places]))]
