"""The arrays that a BM25 search reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Postings(NamedTuple):
    """The weights of V terms in D documents as a sparse matrix, with arrays that let a search skip postings.

    A named tuple, because numba's compiled functions take it as one argument. `indptr`, `docs` and `weights`
    are the CSR layout of a matrix of terms × documents. All arrays may be memory-mapped.

    Attributes:
        indptr: int64[V + 1]. The postings of term t are those from `indptr[t]` to `indptr[t + 1]` - 1.
        docs: int32[P], the document of each posting, ascending within a term.
        weights: float64[P], the weight of the term in that document.
        bounds: float64[V], the largest weight of each term.
        fences: int64[F + 1]. A term's document numbers are cut into blocks of equal width. Block b of term t
            begins at posting `fences[fence_starts[t] + b]` and ends where the next one begins.
        fence_starts: int64[V], see `fences`.
        shifts: uint8[V]. A block of term t is `2 ** shifts[t]` document numbers wide, which is about eight
            postings.
        signatures: int64[D], a bit set of the 63 most frequent terms that the document holds.
        bits: int8[V], the bit of the term in `signatures`, -1 for the other terms.
    """

    indptr: np.ndarray
    docs: np.ndarray
    # float64, not float32: the sums must equal rank_bm25's bit for bit.
    weights: np.ndarray
    bounds: np.ndarray
    fences: np.ndarray
    fence_starts: np.ndarray
    shifts: np.ndarray
    signatures: np.ndarray
    bits: np.ndarray
