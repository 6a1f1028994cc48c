"""What follows from the counts of a BM25 index: weights in rank_bm25's order, and aids of search."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

K1 = 1.5
B = 0.75
EPSILON = 0.25

#: A posting's weight is computed so many at a time.
CHUNK = 1 << 20


def blocks(document_frequencies: np.ndarray, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Per term: the bits of a document's number inside its block, and how many blocks there are."""
    last = max(n_documents - 1, 0)
    # A power of two of blocks, with eight to sixteen postings in each if they lie evenly.
    per_block = np.maximum(document_frequencies >> 3, 1)
    shifts = np.maximum(last.bit_length() - (np.frexp(per_block)[1] - 1), 0)
    return shifts, (last >> shifts) + 1


def fill_weights(
    indptr: np.ndarray,
    docs: np.ndarray,
    frequencies: np.ndarray,
    lengths: np.ndarray,
    weights: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Writes the Okapi weight of every posting, and each term's largest."""
    if len(indptr) == 1:
        return
    idf = okapi_idf(np.diff(indptr), len(lengths))
    average_length = int(lengths.sum(dtype=np.int64)) / len(lengths)
    norm = K1 * (1 - B + B * lengths.astype(np.int64) / average_length)
    for first, last in _chunks(indptr):
        part = slice(int(indptr[first]), int(indptr[last]))
        tf = frequencies[part].astype(np.int64)
        by_posting = np.repeat(idf[first:last], np.diff(indptr[first : last + 1]))
        weights[part] = by_posting * (tf * (K1 + 1) / (tf + norm[docs[part]]))
        bounds[first:last] = np.maximum.reduceat(weights[part], indptr[first:last] - part.start)


def fill_fences(
    indptr: np.ndarray, docs: np.ndarray, shifts: np.ndarray, fence_starts: np.ndarray, fences: np.ndarray
) -> None:
    """Writes at which posting each block of each term begins, which is where the one before it ends."""
    fences[:] = len(docs)
    for first, last in _chunks(indptr):
        part = slice(int(indptr[first]), int(indptr[last]))
        n_postings = np.diff(indptr[first : last + 1])
        blocks = np.repeat(fence_starts[first:last] - fence_starts[first], n_postings)
        blocks += docs[part] >> np.repeat(shifts[first:last], n_postings)
        begin = int(fence_starts[first])
        end = int(fence_starts[last]) if last < len(shifts) else len(fences) - 1
        counts = np.bincount(blocks, minlength=end - begin)
        fences[begin:end] = part.start + np.cumsum(counts) - counts


def fill_signatures(indptr: np.ndarray, docs: np.ndarray, bits: np.ndarray, signatures: np.ndarray) -> None:
    """Gives the 63 most frequent terms a bit, and sets it in the documents that hold them."""
    bits[:], signatures[:] = -1, 0
    frequent = np.argsort(-np.diff(indptr), kind="stable")[:63]
    for bit, term in enumerate(frequent.tolist()):
        bits[term] = bit
        signatures[docs[indptr[term] : indptr[term + 1]]] |= 1 << bit


def _chunks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of whole terms with about CHUNK postings each."""
    n_terms = len(indptr) - 1
    first = 0
    while first < n_terms:
        last = int(np.searchsorted(indptr, indptr[first] + CHUNK, side="right")) - 1
        last = min(max(last, first + 1), n_terms)
        yield first, last
        first = last


def okapi_idf(document_frequencies: np.ndarray, n_documents: int) -> np.ndarray:
    """float64[V]: rank_bm25's IDF of terms in order of first appearance.

    A term in more than half of the documents gets epsilon times the mean IDF instead of its negative one. The
    mean is summed in the library's order, because addition is not associative.
    """
    counts, which = np.unique(document_frequencies, return_inverse=True)
    # math.log, not numpy's: the two may differ in the last bit.
    values = [math.log(n_documents - n + 0.5) - math.log(n + 0.5) for n in counts.tolist()]
    idf = np.array(values)[which]
    total = float(np.cumsum(idf)[-1])  # cumsum adds one by one, sum does not
    idf[idf < 0] = EPSILON * (total / len(idf))
    return idf
