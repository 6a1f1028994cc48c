"""The compiled search of large BM25 indexes. It is exact, but does not read most of the postings.

The algorithm is MaxScore (Turtle and Flood 1995), one term at a time. Terms are taken from the rarest to the
most frequent, and documents collect their weights. As soon as the remaining terms together can give less than
the k-th best sum so far, no other document can enter the result. From then on the long posting lists that
remain are only looked up for the few candidates. Sums in that order differ in their last bits from
rank_bm25's. So the candidates within a margin far above rounding are summed again, in the order of the
query's words. Scores and ranks therefore equal those of `BM25Index.scores` bit for bit.

Weights must not be negative; `BM25Index.is_large` makes sure of that. Compiled code is kept on disk, so only
the first search on a machine waits for the compiler. Compiled functions release Python's interpreter lock, so
threads search in parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from retrieval.search.bm25.postings import Postings
from retrieval.search.compiled import compiled
from retrieval.search.cores import cores

#: Posting lists at least this long are checked for skipping. The check itself costs k look-ups for each term
#: left.
SKIP_LENGTH = 1024
#: Queries that a thread takes at a time: enough to make the switch between threads cheap.
QUERIES_AT_A_TIME = 32
#: Sums of a few dozen float64 differ by rounding by less than this share of their value.
SLACK = 1e-9


class PostingLists(NamedTuple):
    """The arrays of `Postings` that a look-up of one weight reads.

    A separate tuple, because numba passes each array of a named tuple. With all arrays of `Postings`, a
    search is 10 % slower.
    """

    docs: np.ndarray
    weights: np.ndarray
    fences: np.ndarray
    fence_starts: np.ndarray
    shifts: np.ndarray


class QueryBatch(NamedTuple):
    """A batch of queries as two arrays, for compiled code.

    Attributes:
        terms: int64, the term ids of all queries, one query after the other, in the order of their words.
        ends: int64[Q + 1]. Query q has the terms `terms[ends[q] : ends[q + 1]]`.
        skip_length: posting lists at least this long are checked for skipping.
    """

    terms: np.ndarray
    ends: np.ndarray
    skip_length: int


class Workspace(NamedTuple):
    """Memory that one thread reuses between searches, because zeroing D sums for every query is slow.

    Attributes:
        sums: float64[D], zeros between searches.
        touched: int32[D + 1]. Its first entries are the documents with a sum above zero, in no order.
    """

    sums: np.ndarray
    touched: np.ndarray


class Results(NamedTuple):
    """The documents found for each query, best first. Of equal scores, the earlier document is first.

    Attributes:
        scores: float64[Q, k], scores of the documents.
        places: int64[Q, k], places of the documents.
    """

    scores: np.ndarray
    places: np.ndarray


@compiled
def _worse(score: float, doc: int, other_score: float, other_doc: int) -> bool:
    """Return whether a document ranks behind another.

    Its score is smaller, or the scores are equal and its place is later.
    """
    return score < other_score or (score == other_score and doc > other_doc)


@compiled
def _sift_down(scores: np.ndarray, docs: np.ndarray, size: int, score: float, doc: int) -> None:
    """Replace the root of a heap, which is the worst document, by another document."""
    # The document moves down in a gap: each level costs one copy instead of a swap.
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


@compiled
def _push(scores: np.ndarray, docs: np.ndarray, size: int, score: float, doc: int) -> int:
    """Add a document to a heap of the best `len(docs)` documents, and return the size of the heap."""
    if size == len(docs):
        if size and _worse(scores[0], docs[0], score, doc):
            _sift_down(scores, docs, size, score, doc)
        return size
    # As in `_sift_down`, upwards: a gap moves up until the document fits.
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if not _worse(score, doc, scores[parent], docs[parent]):
            break
        scores[place], docs[place] = scores[parent], docs[parent]
        place = parent
    scores[place], docs[place] = score, doc
    return size + 1


@compiled
def _best_first(scores: np.ndarray, docs: np.ndarray, size: int) -> None:
    """Sort a heap, best document first."""
    # The second half of heapsort: the root is the worst, so it goes to the end, and the heap shrinks by one.
    for last in range(size - 1, 0, -1):
        score, doc = scores[last], docs[last]
        scores[last], docs[last] = scores[0], docs[0]
        _sift_down(scores, docs, last, score, doc)


@compiled
def _weight(lists: PostingLists, term: int, doc: int) -> Any:
    """Return the weight of a document in one term's postings, or 0 if the term has no such posting."""
    # A block has about eight to sixteen postings, so the search below takes about four steps instead of the
    # twenty or so of a whole posting list.
    block = lists.fence_starts[term] + (doc >> lists.shifts[term])
    low = lists.fences[block]
    size = lists.fences[block + 1] - low
    while size > 1:
        half = size >> 1
        # A conditional addition instead of a branch: which half is right cannot be predicted.
        low += half if lists.docs[low + half] <= doc else 0
        size -= half
    # `size` is 0 for an empty block, where `low` may be one past the last posting.
    if size and lists.docs[low] == doc:
        return lists.weights[low]
    return 0.0


@compiled
def _collect(docs: np.ndarray, weights: np.ndarray, sums: np.ndarray, touched: np.ndarray, count: int) -> int:
    """Add all weights of one term to the sums of its documents.

    Args:
        docs: int32, documents of the term's postings.
        weights: float64, their weights.
        sums: float64[D], changed.
        touched: int32[D + 1], changed.
        count: number of documents touched before.

    Returns:
        The number of documents touched now.
    """
    # An IDF of zero makes all weights of a term zero. They must not be added: a sum of zero marks an
    # untouched document.
    if len(docs) and weights[0] == 0.0:
        return count
    for place in range(len(docs)):
        doc = docs[place]
        before = sums[doc]
        # Written always, and overwritten by the next if the document is not new: the processor would predict
        # a branch here wrong too often. Therefore `touched` has one entry more than there are documents.
        touched[count] = doc
        count += before == 0.0
        sums[doc] = before + weights[place]
    return count


@compiled
def _reached_by_k(
    lists: PostingLists,
    remaining: np.ndarray,
    workspace: Workspace,
    count: int,
    heap_scores: np.ndarray,
    heap_docs: np.ndarray,
) -> float:
    """Return a score that at least k documents are certain to reach.

    This is the smallest complete score among the k documents with the best sums so far.

    Args:
        lists: the postings.
        remaining: int64, terms whose weights are not yet in the sums.
        workspace: sums and touched documents.
        count: number of touched documents, at least k.
        heap_scores: float64[k], overwritten.
        heap_docs: int64[k], overwritten.
    """
    sums, touched = workspace.sums, workspace.touched
    size = 0
    for j in range(count):
        doc = touched[j]
        # The comparison saves the call for most documents. A tie need not enter: any k documents give a valid
        # bound.
        if size < len(heap_docs) or sums[doc] > heap_scores[0]:
            size = _push(heap_scores, heap_docs, size, sums[doc], doc)
    least = np.inf
    for j in range(size):
        score = heap_scores[j]
        for term in remaining:
            score += _weight(lists, term, heap_docs[j])
        least = min(least, score)
    return least


@compiled
def _search(
    postings: Postings,
    query: np.ndarray,
    skip_length: int,
    workspace: Workspace,
    heap_scores: np.ndarray,
    heap_docs: np.ndarray,
) -> None:
    """Find the best k documents of one query.

    Args:
        postings: the index.
        query: int64, term ids in the order of the query's words.
        skip_length: posting lists at least this long are checked for skipping.
        workspace: sums and touched documents; the sums are zeros before and after.
        heap_scores: float64[k], k at most D, filled best first.
        heap_docs: int64[k], filled with the documents.
    """
    lists = PostingLists(
        postings.docs, postings.weights, postings.fences, postings.fence_starts, postings.shifts
    )
    indptr, bounds, bits, signatures = postings.indptr, postings.bounds, postings.bits, postings.signatures
    sums, touched = workspace.sums, workspace.touched
    k, n = len(heap_docs), len(query)
    # Rarest first: rare terms have the largest weights, so the threshold rises early, and the long lists are
    # the ones that remain to be skipped. Insertion sort, because a query has few terms and numba's argsort
    # allocates.
    order = query.copy()
    for i in range(1, n):
        j, term = i, query[i]
        while j and indptr[order[j - 1] + 1] - indptr[order[j - 1]] > indptr[term + 1] - indptr[term]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = term
    # most_left[i]: the most that the terms from the i-th on can add to one document.
    most_left = np.zeros(n + 1)
    for i in range(n - 1, -1, -1):
        most_left[i] = most_left[i + 1] + bounds[order[i]]
    # At least k documents reach this score, so a document below it cannot be in the result.
    threshold = 0.0
    count = 0
    # Terms from here on are only looked up.
    split = n
    for i in range(n):
        term = order[i]
        start, end = indptr[term], indptr[term + 1]
        # Fewer than k touched documents give no bound: an untouched one could still be among the best.
        if count >= k and end - start >= skip_length:
            reached = _reached_by_k(lists, order[i:], workspace, count, heap_scores, heap_docs)
            threshold = max(threshold, reached * (1 - SLACK))
            if most_left[i] < threshold:
                # Every document that is not touched yet gets at most `most_left[i]`, which is below the
                # threshold.
                split = i
                break
        count = _collect(lists.docs[start:end], lists.weights[start:end], sums, touched, count)
    # Complete the scores of the documents that may reach the threshold, and raise it by them. Those that
    # reach it are moved to the front of `touched`: the candidates.
    size = n_candidates = 0
    for j in range(count):
        doc = touched[j]
        score = sums[doc]
        # Strictly below: a document that ties with the threshold may win by its smaller number.
        if score + most_left[split] < threshold:
            continue
        # A tighter limit: of the frequent terms, only those that the document's signature has can add
        # anything.
        most = score
        for i in range(split, n):
            if bits[order[i]] < 0 or (signatures[doc] >> bits[order[i]]) & 1:
                most += bounds[order[i]]
        i = split
        while most >= threshold and i < n:
            term = order[i]
            if bits[term] < 0 or (signatures[doc] >> bits[term]) & 1:
                weight = _weight(lists, term, doc)
                score += weight
                # The bound of the term is replaced by its actual weight, so `most` falls until the document
                # is out.
                most += weight - bounds[term]
            i += 1
        if i == n and score >= threshold:
            sums[doc] = score
            # A swap, because every touched document is needed at the end, where the sums are set to zero.
            touched[j], touched[n_candidates] = touched[n_candidates], doc
            n_candidates += 1
            size = _push(heap_scores, heap_docs, size, score, doc)
            if size == k:
                # Only a full heap bounds the result. The slack keeps documents that rounding put slightly
                # below.
                threshold = max(threshold, heap_scores[0] * (1 - SLACK))
    # Sum the candidates again in the order of the query's words, which is the order of `BM25Index.scores`.
    size = 0
    for j in range(n_candidates):
        doc = touched[j]
        # Later candidates raised the threshold, so it is checked again for the earlier ones.
        if sums[doc] >= threshold:
            score = 0.0
            for term in query:
                score += _weight(lists, term, doc)
            size = _push(heap_scores, heap_docs, size, score, doc)
    _best_first(heap_scores, heap_docs, size)
    # Fewer than k documents hold a word of the query: fill up with the first of the others, which score zero.
    # This is the order of `BM25Index.search`, where equal scores go by document number.
    doc = 0
    while size < k:
        if sums[doc] == 0.0:
            heap_scores[size], heap_docs[size] = 0.0, doc
            size += 1
        doc += 1
    # Only touched sums are reset. Zeroing all D of them would cost more than the search of a rare term.
    for j in range(count):
        sums[touched[j]] = 0.0


@compiled
def _search_some(
    postings: Postings, queries: QueryBatch, first: int, last: int, workspace: Workspace, results: Results
) -> None:
    """Search the queries `first` to `last` - 1 and write their documents into `results`."""
    for q in range(first, last):
        query = queries.terms[queries.ends[q] : queries.ends[q + 1]]
        _search(postings, query, queries.skip_length, workspace, results.scores[q], results.places[q])


class MaxScoreSearch:
    """The compiled search of one index, in threads. Each thread keeps its workspace between searches."""

    def __init__(self, postings: Postings) -> None:
        self._postings = postings
        # A list: its append and pop are atomic, so threads need no lock.
        self._workspaces: list[Workspace] = []

    def search(
        self, queries: Sequence[Sequence[int]], k: int, threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the best documents of each query.

        Args:
            queries: Q queries as term ids.
            k: number of documents to find, at most D.
            threads: number of queries to search at the same time; None: one for each core of this process.

        Returns:
            (documents int64[Q, k], scores float64[Q, k]), best first; the earlier document wins a tie.
        """
        n_queries = len(queries)
        ends = np.zeros(n_queries + 1, dtype=np.int64)
        np.cumsum([len(query) for query in queries], out=ends[1:])
        terms = np.fromiter(
            (term for query in queries for term in query), dtype=np.int64, count=int(ends[-1])
        )
        results = Results(np.empty((n_queries, k)), np.empty((n_queries, k), dtype=np.int64))
        if k == 0:
            return results.places, results.scores
        batch = QueryBatch(terms, ends, SKIP_LENGTH)

        def search_from(first: int) -> None:
            # A workspace has 12 bytes for each document, so there are never more of them than threads at
            # work.
            workspace = self._workspaces.pop() if self._workspaces else self._new_workspace()
            last = min(first + QUERIES_AT_A_TIME, n_queries)
            _search_some(self._postings, batch, first, last, workspace, results)
            self._workspaces.append(workspace)

        # Each call writes rows of its own into `results`, so the order of the threads does not matter.
        starts = range(0, n_queries, QUERIES_AT_A_TIME)
        workers = min(threads or cores(), len(starts))
        if workers <= 1:
            for first in starts:
                search_from(first)
        else:
            with ThreadPoolExecutor(workers) as pool:
                # `list` waits for all calls, and raises what one of them raised.
                list(pool.map(search_from, starts))
        return results.places, results.scores

    def _new_workspace(self) -> Workspace:
        n_documents = len(self._postings.signatures)
        return Workspace(np.zeros(n_documents), np.empty(n_documents + 1, dtype=np.int32))
