"""Compute the weights of a BM25 index in the order of rank_bm25, and the arrays that speed up the search."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

#: Parameters of Okapi BM25, with rank_bm25's defaults.
K1 = 1.5
B = 0.75
EPSILON = 0.25
#: From this number of documents on, a term of one document has a positive IDF.
SMALLEST = 3

#: Postings that are computed at a time: large enough for numpy, small enough for memory.
CHUNK = 1 << 20


def small_idf(document_frequency: int, n_documents: int) -> float:
    """Return the IDF of a term in a corpus of one or two documents: Lucene's, which is always positive."""
    return math.log(1 + (n_documents - document_frequency + 0.5) / (document_frequency + 0.5))


def okapi_idf(document_frequencies: np.ndarray, n_documents: int) -> np.ndarray:
    """Return float64[V]: rank_bm25's inverse document frequency (IDF) of each term.

    A term in more than half of the documents has a negative IDF, which is replaced by epsilon times the mean
    IDF. Of less than three documents, no term has a positive IDF; then `small_idf` is used.

    Args:
        document_frequencies: int64[V], number of documents that hold the term, V > 0. Terms stand in the
            order of their first appearance: the mean is summed in the library's order, because addition is
            not associative.
        n_documents: number of all documents.
    """
    if n_documents < SMALLEST:
        return np.array([small_idf(n, n_documents) for n in document_frequencies.tolist()])
    # The logarithms are taken one by one, so each document frequency is computed once: many terms share one.
    counts, which = np.unique(document_frequencies, return_inverse=True)
    # math.log as the library does it; numpy's logarithm may differ in the last bit.
    values = [math.log(n_documents - n + 0.5) - math.log(n + 0.5) for n in counts.tolist()]
    idf = np.array(values)[which]
    total = float(np.cumsum(idf)[-1])  # cumsum adds one by one as the library does; np.sum adds in pairs
    idf[idf < 0] = EPSILON * (total / len(idf))
    return idf


def length_norms(lengths: np.ndarray) -> np.ndarray:
    """Return float64[D]: the part of the Okapi weight that depends on a document's length alone.

    Args:
        lengths: int32[D], tokens of each document, not all of them 0.
    """
    # Integers up to the one division, as in the library.
    average_length = int(lengths.sum(dtype=np.int64)) / len(lengths)
    return K1 * (1 - B + B * lengths.astype(np.int64) / average_length)


def okapi_weights(idf: np.ndarray, frequencies: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return float64[P]: the Okapi weight of each posting.

    Args:
        idf: float64[P], IDF of the posting's term.
        frequencies: unsigned[P], number of occurrences of the term in the document.
        norms: float64[P], length norm of the posting's document.
    """
    # The frequencies may be uint8, in which the products below would overflow.
    tf = frequencies.astype(np.int64)
    return idf * (tf * (K1 + 1) / (tf + norms))


def fill_bounds(indptr: np.ndarray, weights: np.ndarray, bounds: np.ndarray) -> None:
    """Write the largest weight of each term into `bounds`.

    Args:
        indptr: int64[V + 1]; every term has a posting.
        weights: float64[P].
        bounds: float64[V], filled.
    """
    for first, last in _chunks(indptr):
        part = slice(int(indptr[first]), int(indptr[last]))
        bounds[first:last] = np.maximum.reduceat(weights[part], indptr[first:last] - part.start)


def block_layout(document_frequencies: np.ndarray, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the width and the number of the blocks of each term (see `Postings.fences`).

    Returns:
        (int64[V] bits of a document's number inside its block, int64[V] number of blocks).
    """
    # `last` is the largest document number. Its bit length bounds the shift.
    last = max(n_documents - 1, 0)
    # The number of blocks is a power of two, so that a shift finds a document's block. If the postings lie
    # evenly, a block has eight to sixteen: a look-up then reads one or two cache lines.
    per_block = np.maximum(document_frequencies >> 3, 1)
    # `frexp(n)[1] - 1` is the exponent of the largest power of two up to n: an exact integer logarithm, which
    # `log2` with its rounding is not.
    shifts = np.maximum(last.bit_length() - (np.frexp(per_block)[1] - 1), 0)
    return shifts, (last >> shifts) + 1


def fill_fences(
    indptr: np.ndarray, docs: np.ndarray, shifts: np.ndarray, fence_starts: np.ndarray, fences: np.ndarray
) -> None:
    """Write the first posting of each block of each term into `fences`.

    The first posting of a block is also the end of the previous block.

    Args:
        indptr: int64[V + 1].
        docs: int32[P].
        shifts: uint8[V].
        fence_starts: int64[V].
        fences: int64[F + 1], filled.
    """
    # This also sets the end of the last block.
    fences[:] = len(docs)
    for first, last in _chunks(indptr):
        part = slice(int(indptr[first]), int(indptr[last]))
        n_postings = np.diff(indptr[first : last + 1])
        blocks = np.repeat(fence_starts[first:last] - fence_starts[first], n_postings)
        # Now `blocks` has the block of each posting, counted from the first block of this part.
        blocks += docs[part] >> np.repeat(shifts[first:last], n_postings)
        begin = int(fence_starts[first])
        end = int(fence_starts[last]) if last < len(shifts) else len(fences) - 1
        counts = np.bincount(blocks, minlength=end - begin)
        fences[begin:end] = part.start + np.cumsum(counts) - counts


def fill_signatures(indptr: np.ndarray, docs: np.ndarray, bits: np.ndarray, signatures: np.ndarray) -> None:
    """Assign a bit to each of the 63 most frequent terms, and set it in the documents that hold the term.

    Args:
        indptr: int64[V + 1].
        docs: int32[P].
        bits: int8[V], filled; -1 for the other terms.
        signatures: int64[D], filled.
    """
    bits[:], signatures[:] = -1, 0
    # 63, not 64: `1 << 63` does not fit into int64.
    frequent = np.argsort(-np.diff(indptr), kind="stable")[:63]
    for bit, term in enumerate(frequent.tolist()):
        bits[term] = bit
        # A document stands once in a term's postings, so the indexed `|=` sets every bit.
        signatures[docs[indptr[term] : indptr[term + 1]]] |= 1 << bit


def _chunks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole terms with about CHUNK postings each."""
    n_terms = len(indptr) - 1
    first = 0
    while first < n_terms:
        last = int(np.searchsorted(indptr, indptr[first] + CHUNK, side="right")) - 1
        # A term with more than CHUNK postings is a part of its own.
        last = min(max(last, first + 1), n_terms)
        yield first, last
        first = last
