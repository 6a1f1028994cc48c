"""The search of large BM25 indexes, compiled: exact, and without looking at most of the postings.

MaxScore (Turtle and Flood 1995), term at a time: terms are taken from the rarest on, and documents collect
their weights. As soon as what the remaining terms can give at most is less than the k-th best sum so far, no
other document can enter: the long lists that remain are only looked up for the few candidates. Sums in that
order differ from rank_bm25's in the last bits, so the candidates (those within a margin far above rounding)
are summed anew in the order of the query's words. Scores and ranks are therefore those of `BM25Index.scores`,
bit for bit.

Weights must not be negative; the caller sees to that. Compiled code is kept on disk, so that only the first
search on a machine waits for the compiler. Compiled functions hold no interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from retrieval.search.cores import cores

if TYPE_CHECKING:
    from retrieval.search.bm25.index import BM25Index

#: What a search reads.
SEARCH_ARRAYS = (
    "indptr",
    "docs",
    "weights",
    "bounds",
    "fences",
    "fence_starts",
    "shifts",
    "signatures",
    "bits",
)
#: So long is a list of postings that it is worth a look whether it can be left out.
LONG = 1024
#: Queries that a thread takes at a time.
TAKE = 32
#: Sums of a few dozen float64 differ by rounding less than this share of themselves.
SLACK = 1e-9


def _compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, cached on disk where numba finds a place to write."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither beside this file nor in the user's cache
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def _worse(score: float, doc: int, other_score: float, other_doc: int) -> bool:
    """Whether a document ranks behind another: a smaller score, or the same and a later place."""
    return score < other_score or (score == other_score and doc > other_doc)


@_compiled
def _sift_down(scores: np.ndarray, docs: np.ndarray, size: int, score: float, doc: int) -> None:
    """Puts a document in place of the root, the worst, of a heap."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        other = child + 1
        if other < size and _worse(scores[other], docs[other], scores[child], docs[child]):
            child = other
        if not _worse(scores[child], docs[child], score, doc):
            break
        scores[place], docs[place] = scores[child], docs[child]
        place = child
    scores[place], docs[place] = score, doc


@_compiled
def _push(scores: np.ndarray, docs: np.ndarray, size: int, score: float, doc: int) -> int:
    """Adds a document to a heap of the best `len(docs)`; returns the heap's size."""
    if size == len(docs):
        if size and _worse(scores[0], docs[0], score, doc):
            _sift_down(scores, docs, size, score, doc)
        return size
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if not _worse(score, doc, scores[parent], docs[parent]):
            break
        scores[place], docs[place] = scores[parent], docs[parent]
        place = parent
    scores[place], docs[place] = score, doc
    return size + 1


@_compiled
def _best_first(scores: np.ndarray, docs: np.ndarray, size: int) -> None:
    """Sorts a heap."""
    for last in range(size - 1, 0, -1):
        score, doc = scores[last], docs[last]
        scores[last], docs[last] = scores[0], docs[0]
        _sift_down(scores, docs, last, score, doc)


@_compiled
def _weight(
    docs: np.ndarray,
    weights: np.ndarray,
    fences: np.ndarray,
    fence_starts: np.ndarray,
    shifts: np.ndarray,
    term: int,
    doc: int,
) -> Any:
    """The weight of a document in one term's postings, 0 if it is not there."""
    block = fence_starts[term] + (doc >> shifts[term])
    low = fences[block]
    size = fences[block + 1] - low
    while size > 1:
        half = size >> 1
        low += half if docs[low + half] <= doc else 0
        size -= half
    if size and docs[low] == doc:
        return weights[low]
    return 0.0


@_compiled
def _collect(
    docs: np.ndarray,
    weights: np.ndarray,
    start: int,
    end: int,
    sums: np.ndarray,
    touched: np.ndarray,
    count: int,
) -> int:
    """Adds all of a term's weights; documents not yet touched are noted. Returns how many now are."""
    if end > start and weights[start] == 0.0:  # an IDF of zero: it says nothing
        return count
    for place in range(start, end):
        doc = docs[place]
        before = sums[doc]
        touched[count] = doc  # overwritten by the next if it is no new one: a branch would be guessed wrong
        count += before == 0.0
        sums[doc] = before + weights[place]
    return count


@_compiled
def _reached(
    order: np.ndarray,
    i: int,
    indptr: np.ndarray,
    docs: np.ndarray,
    weights: np.ndarray,
    fences: np.ndarray,
    fence_starts: np.ndarray,
    shifts: np.ndarray,
    sums: np.ndarray,
    touched: np.ndarray,
    count: int,
    heap_scores: np.ndarray,
    heap_docs: np.ndarray,
) -> float:
    """A score that k documents reach for certain: the least whole one of those with the best sums so far."""
    size = 0
    for j in range(count):
        doc = touched[j]
        if size < len(heap_docs) or sums[doc] > heap_scores[0]:
            size = _push(heap_scores, heap_docs, size, sums[doc], doc)
    least = np.inf
    for j in range(size):
        score = heap_scores[j]
        for term in order[i:]:
            score += _weight(docs, weights, fences, fence_starts, shifts, term, heap_docs[j])
        least = min(least, score)
    return least


@_compiled
def _search(
    query: np.ndarray,
    indptr: np.ndarray,
    docs: np.ndarray,
    weights: np.ndarray,
    bounds: np.ndarray,
    fences: np.ndarray,
    fence_starts: np.ndarray,
    shifts: np.ndarray,
    signatures: np.ndarray,
    bits: np.ndarray,
    worth: int,
    sums: np.ndarray,
    touched: np.ndarray,
    heap_scores: np.ndarray,
    heap_docs: np.ndarray,
) -> None:
    """The best k documents of one query, best first, into the heap's arrays, which have k places.

    Args:
        worth: how long a list of postings must be to be worth a look whether it can be left out.
        sums: float64[D] of zeros, which they are again afterwards.
        touched: int32[D + 1], room to work in.
    """
    k, n = len(heap_docs), len(query)
    order = query.copy()
    for i in range(1, n):  # by length of the postings; there are few
        j, term = i, query[i]
        while j and indptr[order[j - 1] + 1] - indptr[order[j - 1]] > indptr[term + 1] - indptr[term]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = term
    # rest[i]: what the terms from the i-th on can give at most
    rest = np.zeros(n + 1)
    for i in range(n - 1, -1, -1):
        rest[i] = rest[i + 1] + bounds[order[i]]
    bar = 0.0
    count = 0
    split = n
    for i in range(n):
        term = order[i]
        start, end = indptr[term], indptr[term + 1]
        if count >= k and end - start >= worth:
            reached = _reached(
                order,
                i,
                indptr,
                docs,
                weights,
                fences,
                fence_starts,
                shifts,
                sums,
                touched,
                count,
                heap_scores,
                heap_docs,
            )
            bar = max(bar, reached * (1 - SLACK))
            if rest[i] < bar:
                split = i
                break
        count = _collect(docs, weights, start, end, sums, touched, count)
    # Whole scores of those that may reach the bar, which they raise. What is left are the candidates.
    size = left = 0
    for j in range(count):
        doc = touched[j]
        score = sums[doc]
        if score + rest[split] < bar:
            continue
        most = score
        for i in range(split, n):
            if bits[order[i]] < 0 or (signatures[doc] >> bits[order[i]]) & 1:
                most += bounds[order[i]]
        i = split
        while most >= bar and i < n:
            term = order[i]
            if bits[term] < 0 or (signatures[doc] >> bits[term]) & 1:
                weight = _weight(docs, weights, fences, fence_starts, shifts, term, doc)
                score += weight
                most += weight - bounds[term]
            i += 1
        if i == n and score >= bar:
            sums[doc] = score
            touched[j], touched[left] = touched[left], doc
            left += 1
            size = _push(heap_scores, heap_docs, size, score, doc)
            if size == k:
                bar = max(bar, heap_scores[0] * (1 - SLACK))
    size = 0
    for j in range(left):
        doc = touched[j]
        if sums[doc] >= bar:
            score = 0.0
            for term in query:
                score += _weight(docs, weights, fences, fence_starts, shifts, term, doc)
            size = _push(heap_scores, heap_docs, size, score, doc)
    _best_first(heap_scores, heap_docs, size)
    doc = 0
    while size < k:  # documents without any of the words, in order
        if sums[doc] == 0.0:
            heap_scores[size], heap_docs[size] = 0.0, doc
            size += 1
        doc += 1
    for j in range(count):
        sums[touched[j]] = 0.0


@_compiled
def search_many(
    terms: np.ndarray,
    ends: np.ndarray,
    first: int,
    last: int,
    indptr: np.ndarray,
    docs: np.ndarray,
    weights: np.ndarray,
    bounds: np.ndarray,
    fences: np.ndarray,
    fence_starts: np.ndarray,
    shifts: np.ndarray,
    signatures: np.ndarray,
    bits: np.ndarray,
    worth: int,
    sums: np.ndarray,
    touched: np.ndarray,
    scores_out: np.ndarray,
    places_out: np.ndarray,
) -> None:
    """Searches queries `first` to `last` - 1.

    Args:
        terms: int64, the term ids of all queries one behind the other, in the order of their words; those of
            query q are `terms[ends[q]:ends[q + 1]]`.
        worth: how long a list of postings must be to be worth a look whether it can be left out.
        sums: float64[D] of zeros, which they are again afterwards.
        touched: int32[D + 1], room to work in.
        scores_out, places_out: float64[Q, k] and int64[Q, k], k at most D, filled best first, ties by the
            earlier place.
    """
    for q in range(first, last):
        query = terms[ends[q] : ends[q + 1]]
        _search(
            query,
            indptr,
            docs,
            weights,
            bounds,
            fences,
            fence_starts,
            shifts,
            signatures,
            bits,
            worth,
            sums,
            touched,
            scores_out[q],
            places_out[q],
        )


def search_batch(
    index: BM25Index, queries: Sequence[Sequence[int]], k: int, threads: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The best of queries given as term ids: (places int64[Q, k], scores float64[Q, k]), k at most D.

    Args:
        threads: how many search at a time; None: as many as this process may use cores.
    """
    n_queries = len(queries)
    ends = np.zeros(n_queries + 1, dtype=np.int64)
    np.cumsum([len(query) for query in queries], out=ends[1:])
    terms = np.fromiter((term for query in queries for term in query), dtype=np.int64, count=int(ends[-1]))
    places, scores = np.empty((n_queries, k), dtype=np.int64), np.empty((n_queries, k))
    if k == 0:
        return places, scores
    arrays = [getattr(index, name) for name in SEARCH_ARRAYS]

    def take(first: int) -> None:
        room = index.room.pop() if index.room else _room(index.n_documents)
        search_many(terms, ends, first, min(first + TAKE, n_queries), *arrays, LONG, *room, scores, places)
        index.room.append(room)

    takes = range(0, n_queries, TAKE)
    workers = min(threads or cores(), len(takes))
    if workers <= 1:
        for first in takes:
            take(first)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(take, takes))
    return places, scores


def _room(n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """What one thread works in; `search_many` leaves the sums at zero, so that it can be used again."""
    return np.zeros(n_documents), np.empty(n_documents + 1, dtype=np.int32)
