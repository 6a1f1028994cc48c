"""Build a BM25 index from a stream of documents.

Documents are added in batches. Only the sorted postings of each batch are kept, on disk if the index is to be
saved. So memory holds one batch, the vocabulary, and the pages of files that the operating system caches.
Weights are computed from the counts alone, so the sizes of the batches do not change the bytes of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from jora_core.base.errors import InputError
from retrieval.search.bm25.folder import IndexDraft, load_index
from retrieval.search.bm25.index import BM25Index
from retrieval.search.bm25.okapi_reference import RankBM25Index
from retrieval.search.bm25.postings import Postings
from retrieval.search.bm25.ranker import Ranker
from retrieval.search.bm25.weights import (
    block_layout,
    fill_bounds,
    fill_fences,
    fill_signatures,
    length_norms,
    okapi_idf,
    okapi_weights,
)
from retrieval.text.normalize import Tokenizer

#: A batch is sorted when it has this many tokens, or this many documents.
BATCH_TOKENS = 1 << 20

#: Gives an array to fill, by name, type and size.
Allocate = Callable[[str, np.dtype, int], np.ndarray]


def build_index(corpus: Iterable[Sequence[str]], tokenizer: Tokenizer | None = None) -> BM25Index:
    """Build a BM25 index in memory from documents that `tokenizer` has split into words.

    The index of an empty corpus finds no documents.
    """
    builder = BM25Builder(tokenizer)
    builder.add_tokens(corpus)
    return builder.finish()


def build_ranker(
    corpus: Iterable[Sequence[str]],
    backend: Literal["csr", "rank_bm25"],
    tokenizer: Tokenizer | None = None,
) -> Ranker:
    """Build the index of the configured BM25 backend in memory. Both backends give the same scores.

    Args:
        corpus: documents that `tokenizer` has split into words.
        backend: `csr` is `BM25Index`, `rank_bm25` is the library.
        tokenizer: splits the queries; None: the words are used unchanged.
    """
    if backend == "rank_bm25":
        return RankBM25Index(corpus, tokenizer)
    return build_index(corpus, tokenizer)


@dataclass(frozen=True)
class PostingBatch:
    """The postings of a batch of documents, sorted by term, then by document.

    Attributes:
        terms: int32[U], the terms that occur, ascending.
        counts: int64[U], number of postings of each term.
        docs: int32[P], the document of each posting.
        frequencies: unsigned[P], number of occurrences of the term in the document.
    """

    terms: np.ndarray
    counts: np.ndarray
    docs: np.ndarray
    frequencies: np.ndarray


# A dict subclass, because `map(ids.__getitem__, tokens)` then numbers all tokens of a batch in C. Python code
# runs only for a word that is new.
class _TermIds(dict[str, int]):
    """Ids of terms, numbered in the order of their first appearance."""

    def __missing__(self, term: str) -> int:
        self[term] = number = len(self)
        return number


class _StemIds(dict[str, int]):
    """A map from each word to the number of its stem."""

    def __init__(self, terms: _TermIds, stem: Callable[[str], str]) -> None:
        self._terms, self._stem = terms, stem

    def __missing__(self, word: str) -> int:
        self[word] = number = self._terms[self._stem(word)]
        return number


class BM25Builder:
    """A builder that takes documents in batches and returns the index of all of them.

    With a folder, `finish` saves the index there (all of it or nothing) and opens it memory-mapped. Use the
    builder in a `with` block, which removes the temporary files after an error. Without a folder the index
    stays in memory.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, folder: Path | None = None) -> None:
        """Start an empty index.

        Raises:
            InputError: the folder cannot be made, or it holds something other than a BM25 index.
        """
        self.tokenizer = tokenizer or Tokenizer()
        self._terms = _TermIds()
        # Without a stemmer a word is its own term, so one dictionary serves both. With one, words that share
        # a stem get the same number, and the stemmer runs once for each word.
        self._words: dict[str, int] = self._terms
        if self.tokenizer.stemmer != "none":
            self._words = _StemIds(self._terms, self.tokenizer.stem)
        self._batches: list[PostingBatch] = []
        self._lengths: list[np.ndarray] = []
        self._pending: list[Sequence[str]] = []
        self._pending_tokens = 0
        # With a stemmer, stems and plain words are numbered by different dictionaries: a batch has one kind.
        self._pending_are_stems = False
        self.n_documents = 0
        self._draft = IndexDraft(folder) if folder is not None else None

    def __enter__(self) -> BM25Builder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._draft is not None:
            self._draft.discard()

    def add(self, texts: Iterable[str]) -> None:
        """Add documents as texts, which the builder's tokenizer splits."""
        # Words are stemmed when they are numbered: each word of the vocabulary once instead of every
        # occurrence.
        self._extend(map(self.tokenizer.words, texts), are_stems=False)

    def add_tokens(self, documents: Iterable[Sequence[str]]) -> None:
        """Add documents as lists of words.

        The words are those of the tokenizer, which has also stemmed them if it has a stemmer.
        """
        self._extend(documents, are_stems=True)

    def finish(self) -> BM25Index:
        """Build and return the index of all added documents.

        Raises:
            InputError: the index cannot be written.
        """
        self._sort_pending()
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype=np.int32)
        if self._draft is None:
            return BM25Index(self._terms, assemble(self._terms, self._batches, lengths), self.tokenizer)
        assemble(self._terms, self._batches, lengths, self._draft.allocate)
        # The batches are memory maps of spilled files. They are dropped before `publish` deletes the files.
        self._batches.clear()
        return load_index(self._draft.publish(list(self._terms), self.tokenizer))

    def _extend(self, documents: Iterable[Sequence[str]], are_stems: bool) -> None:
        if are_stems != self._pending_are_stems:
            self._sort_pending()
            self._pending_are_stems = are_stems
        for document in documents:
            self._pending.append(document)
            self._pending_tokens += len(document)
            # Both limits, because a corpus of empty documents has no tokens and would never end a batch.
            if self._pending_tokens >= BATCH_TOKENS or len(self._pending) >= BATCH_TOKENS:
                self._sort_pending()

    def _sort_pending(self) -> None:
        """Turn the pending documents into one batch of postings."""
        if not self._pending:
            return
        n_tokens = self._pending_tokens
        # Document numbers are int32.
        if self.n_documents + len(self._pending) >= 2**31:
            raise InputError("bm25: more than 2,147,483,647 documents; split the corpus into several indexes")
        lengths = np.fromiter(map(len, self._pending), dtype=np.int32, count=len(self._pending))
        ids = self._terms if self._pending_are_stems else self._words
        tokens = np.fromiter(
            map(ids.__getitem__, chain.from_iterable(self._pending)), dtype=np.int64, count=n_tokens
        )
        batch = _sorted_postings(tokens, lengths, self.n_documents)
        self._pending, self._pending_tokens = [], 0
        self.n_documents += len(lengths)
        self._lengths.append(lengths)
        if not len(batch.docs):
            return
        if self._draft is not None:
            spill = self._draft.spill
            batch = PostingBatch(
                spill(batch.terms), spill(batch.counts), spill(batch.docs), spill(batch.frequencies)
            )
        self._batches.append(batch)


def _sorted_postings(tokens: np.ndarray, lengths: np.ndarray, first_document: int) -> PostingBatch:
    """Count the terms of several documents and return the sorted postings.

    Args:
        tokens: int64[T], the term ids of all documents, one document after the other.
        lengths: int32[N], tokens of each document.
        first_document: number of the first document.
    """
    n_tokens = len(tokens)
    # A position takes `bits` bits. With BATCH_TOKENS tokens it takes about 20, so int64 has room for 2^43
    # terms.
    bits = max(n_tokens - 1, 1).bit_length()
    # One number holds the term and the position in the batch: sorting plain numbers is several times faster
    # than a stable argsort of the terms.
    keys = (tokens << bits) | np.arange(n_tokens)
    keys.sort()
    positions = keys & ((1 << bits) - 1)
    terms = (keys >> bits).astype(np.int32)
    # Tokens of a term stay in the order of their positions, so their documents ascend: equal ones are
    # adjacent.
    docs = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[positions]
    is_new = np.ones(n_tokens, dtype=bool)
    np.not_equal(terms[1:], terms[:-1], out=is_new[1:])
    is_new[1:] |= docs[1:] != docs[:-1]
    starts = np.flatnonzero(is_new)
    frequencies = np.diff(starts, append=n_tokens)
    # Up to here there is an entry for each token, from here on one for each (term, document) pair.
    terms, docs = terms[starts], docs[starts]
    term_starts = np.flatnonzero(np.diff(terms, prepend=-1))
    counts = np.diff(term_starts, append=len(terms))
    # Nearly all frequencies are below 256: one byte each on disk instead of eight.
    narrow = np.min_scalar_type(int(frequencies.max(initial=0)))
    return PostingBatch(
        terms[term_starts], counts, docs + np.int32(first_document), frequencies.astype(narrow)
    )


def _in_memory(name: str, dtype: np.dtype, size: int) -> np.ndarray:
    return np.empty(size, dtype=dtype)


def assemble(
    vocabulary: Mapping[str, int],
    batches: Sequence[PostingBatch],
    lengths: np.ndarray,
    allocate: Allocate = _in_memory,
) -> Postings:
    """Join batches of consecutive documents into one vocabulary and one set of postings.

    Args:
        vocabulary: ids in order of first appearance in the documents, all of them used.
        batches: postings by batch.
        lengths: int32[D], tokens of each document.
        allocate: returns an array to fill, in memory or mapped to a file.
    """
    n_terms, n_documents = len(vocabulary), len(lengths)
    document_frequencies = np.zeros(n_terms, dtype=np.int64)
    for batch in batches:
        document_frequencies[batch.terms] += batch.counts
    indptr = allocate("indptr", np.dtype(np.int64), n_terms + 1)
    indptr[0] = 0
    np.cumsum(document_frequencies, out=indptr[1:])
    n_postings = int(indptr[-1])
    docs = allocate("docs", np.dtype(np.int32), n_postings)
    weights = allocate("weights", np.dtype(np.float64), n_postings)
    if n_postings:  # IDF and mean length divide by the number of terms and of tokens
        idf, norms = okapi_idf(document_frequencies, n_documents), length_norms(lengths)
        # Batches come in the order of their documents. Appending to each term's slice therefore keeps the
        # documents of a term ascending, and no sort over all postings is needed.
        next_free = indptr[:-1].copy()
        for batch in batches:
            # `shift` is, for each term, the distance from a posting's place in the batch to its place in the
            # index.
            shift = next_free[batch.terms] - (np.cumsum(batch.counts) - batch.counts)
            places = np.repeat(shift, batch.counts) + np.arange(len(batch.docs))
            docs[places] = batch.docs
            weights[places] = okapi_weights(
                np.repeat(idf[batch.terms], batch.counts), batch.frequencies, norms[batch.docs]
            )
            next_free[batch.terms] += batch.counts
    bounds = allocate("bounds", np.dtype(np.float64), n_terms)
    fill_bounds(indptr, weights, bounds)
    shifts = allocate("shifts", np.dtype(np.uint8), n_terms)
    shifts[:], n_blocks = block_layout(document_frequencies, n_documents)
    fence_starts = allocate("fence_starts", np.dtype(np.int64), n_terms)
    fence_starts[:] = np.cumsum(n_blocks) - n_blocks
    # One entry more than there are blocks: the last block needs an end, too.
    fences = allocate("fences", np.dtype(np.int64), int(n_blocks.sum()) + 1)
    fill_fences(indptr, docs, shifts, fence_starts, fences)
    bits = allocate("bits", np.dtype(np.int8), n_terms)
    signatures = allocate("signatures", np.dtype(np.int64), n_documents)
    fill_signatures(indptr, docs, bits, signatures)
    return Postings(indptr, docs, weights, bounds, fences, fence_starts, shifts, signatures, bits)
