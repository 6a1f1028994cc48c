"""Making a BM25 index from a stream of documents, and from an index with documents added or taken out.

Documents come in batches; of each only its sorted postings are kept, on disk where the index is to be saved,
so that memory holds one batch, the vocabulary and what the operating system likes to cache. Weights follow
from the counts alone, vectorised, in rank_bm25's order of operations: an index that grew equals one built
anew, bit by bit.
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
from retrieval.search.bm25.index import BM25Index, Ranker
from retrieval.search.bm25.okapi_reference import RankBM25Index
from retrieval.search.bm25.weights import blocks, fill_fences, fill_signatures, fill_weights
from retrieval.text.normalize import Tokenizer


def build_index(
    corpus: Iterable[Sequence[str]],
    backend: Literal["csr", "rank_bm25"],
    tokenizer: Tokenizer | None = None,
) -> Ranker:
    """The BM25 index of the configured backend over documents that `tokenizer` has split; both give the same
    scores.
    """
    made = RankBM25Index if backend == "rank_bm25" else BM25Index.build
    return made(corpus, tokenizer)


#: A batch is sorted when it has so many tokens.
BATCH_TOKENS = 1 << 20
Allocate = Callable[[str, np.dtype, int], np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Postings of some documents, sorted by term, then document: `counts[i]` of them belong to `terms[i]`.

    `frequencies` is how often the term stands in the document, `firsts` where it stands first.
    """

    terms: np.ndarray
    counts: np.ndarray
    docs: np.ndarray
    frequencies: np.ndarray
    firsts: np.ndarray


class _TermIds(dict[str, int]):
    """Terms numbered in the order of their first appearance."""

    def __missing__(self, term: str) -> int:
        self[term] = number = len(self)
        return number


class _StemIds(dict[str, int]):
    """Words numbered by their stems."""

    def __init__(self, terms: _TermIds, stem: Callable[[str], str]) -> None:
        self._terms, self._stem = terms, stem

    def __missing__(self, word: str) -> int:
        self[word] = number = self._terms[self._stem(word)]
        return number


class BM25Builder:
    """Takes documents in batches, then gives the index of all of them.

    With a folder the index is saved there at `finish` (all of it or nothing) and opened memory-mapped; use
    the builder in a `with`, which clears up after an error. Without one it stays in memory.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, folder: Path | None = None) -> None:
        """
        Raises:
            InputError: the folder's place cannot be written, or something else lies there.
        """
        from retrieval.search.bm25.folder import Draft

        self.tokenizer = tokenizer or Tokenizer()
        self._terms = _TermIds()
        self._words: dict[str, int] = self._terms
        if self.tokenizer.stemmer != "none":
            self._words = _StemIds(self._terms, self.tokenizer.stem)
        self._batches: list[Batch] = []
        self._lengths: list[np.ndarray] = []
        self._pending: list[Sequence[str]] = []
        self._pending_tokens = 0
        self._stemmed = False
        self.n_documents = 0
        self._draft = Draft(folder) if folder is not None else None

    def __enter__(self) -> BM25Builder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._draft is not None:
            self._draft.discard()

    def add(self, texts: Iterable[str]) -> None:
        """Adds documents as text, which this builder's tokenizer splits."""
        from retrieval.text.normalize import tokenize

        # Stems are looked up by the whole word's number, which is quicker than stemming every occurrence.
        self._extend(map(tokenize, texts), stemmed=False)

    def add_tokens(self, documents: Iterable[Sequence[str]]) -> None:
        """Adds documents that the tokenizer has split (and stemmed, if it does) already."""
        self._extend(documents, stemmed=True)

    def finish(self) -> BM25Index:
        """The index of everything that was added.

        Raises:
            InputError: it cannot be written.
        """
        from retrieval.search.bm25.index import BM25Index

        self._count()
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype=np.int32)
        if self._draft is None:
            return assemble(self._terms, self._batches, lengths, self.tokenizer)
        assemble(self._terms, self._batches, lengths, self.tokenizer, self._draft.allocate)
        self._batches.clear()
        folder = self._draft.publish(list(self._terms), lengths, self.tokenizer)
        return BM25Index.load(folder)

    def continue_from(self, index: BM25Index) -> None:
        """Begins with the documents of an index; call it before anything is added."""
        assert not self.n_documents and index.tokenizer == self.tokenizer
        for term in index.vocabulary:
            self._terms[term]
        terms = np.arange(len(self._terms), dtype=np.int32)
        self._batches.append(Batch(terms, np.diff(index.indptr), index.docs, index.frequencies, index.firsts))
        self._lengths.append(np.asarray(index.lengths))
        self.n_documents = index.n_documents

    def _extend(self, documents: Iterable[Sequence[str]], stemmed: bool) -> None:
        if stemmed != self._stemmed:
            self._count()
            self._stemmed = stemmed
        for document in documents:
            self._pending.append(document)
            self._pending_tokens += len(document)
            if self._pending_tokens >= BATCH_TOKENS or len(self._pending) >= BATCH_TOKENS:
                self._count()

    def _count(self) -> None:
        """Turns the pending documents into one batch of postings."""
        if not self._pending:
            return
        n_tokens = self._pending_tokens
        if self.n_documents + len(self._pending) >= 2**31:
            raise InputError("bm25: more than 2,147,483,647 documents; split the corpus into several indexes")
        lengths = np.fromiter(map(len, self._pending), dtype=np.int32, count=len(self._pending))
        ids = self._terms if self._stemmed else self._words
        tokens = np.fromiter(
            map(ids.__getitem__, chain.from_iterable(self._pending)), dtype=np.int64, count=n_tokens
        )
        batch = _sorted_postings(tokens, lengths, self.n_documents)
        self._pending, self._pending_tokens = [], 0
        self.n_documents += len(lengths)
        self._lengths.append(lengths)
        if len(batch.docs):
            keep = self._draft.spill if self._draft is not None else _as_is
            self._batches.append(Batch(*map(keep, vars(batch).values())))


def _as_is(array: np.ndarray) -> np.ndarray:
    return array


def _sorted_postings(tokens: np.ndarray, lengths: np.ndarray, first_document: int) -> Batch:
    """Counts int64[T] term ids of documents of these lengths, numbered from `first_document`."""
    n_tokens = len(tokens)
    bits = max(n_tokens - 1, 1).bit_length()
    # One number holds the term and the place in the batch: sorting plain numbers is several times quicker
    # than a stable argsort of the terms.
    keys = (tokens << bits) | np.arange(n_tokens)
    keys.sort()
    places = keys & ((1 << bits) - 1)
    terms = (keys >> bits).astype(np.int32)
    docs = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[places]
    new = np.ones(n_tokens, dtype=bool)
    np.not_equal(terms[1:], terms[:-1], out=new[1:])
    new[1:] |= docs[1:] != docs[:-1]
    starts = np.flatnonzero(new)
    frequencies = np.diff(starts, append=n_tokens)
    terms, docs = terms[starts], docs[starts]
    firsts = places[starts] - (np.cumsum(lengths, dtype=np.int64) - lengths)[docs]
    term_starts = np.flatnonzero(np.diff(terms, prepend=-1))
    counts = np.diff(term_starts, append=len(terms))
    return Batch(
        terms[term_starts],
        counts,
        docs + np.int32(first_document),
        frequencies.astype(_smallest(frequencies)),
        firsts.astype(_smallest(firsts)),
    )


def _smallest(values: np.ndarray) -> np.dtype:
    """The smallest unsigned type that holds the values."""
    return np.min_scalar_type(int(values.max(initial=0)))


def _in_memory(name: str, dtype: np.dtype, size: int) -> np.ndarray:
    return np.empty(size, dtype=dtype)


def assemble(
    vocabulary: Mapping[str, int],
    batches: Sequence[Batch],
    lengths: np.ndarray,
    tokenizer: Tokenizer,
    allocate: Allocate = _in_memory,
) -> BM25Index:
    """The index of batches whose documents follow one another.

    Args:
        vocabulary: ids in order of first appearance in the documents, all of them used.
        lengths: int32[D], tokens of each document.
        allocate: gives an array to fill by name, type and size: in memory, or a file's.
    """
    from retrieval.search.bm25.index import BM25Index

    indptr = allocate("indptr", np.dtype(np.int64), len(vocabulary) + 1)
    per_term = np.zeros(len(vocabulary), dtype=np.int64)
    for batch in batches:
        per_term[batch.terms] += batch.counts
    indptr[0] = 0
    np.cumsum(per_term, out=indptr[1:])
    size = int(indptr[-1])

    def merged(name: str) -> np.ndarray:
        parts = [getattr(batch, name) for batch in batches]
        dtype = max(
            (part.dtype for part in parts), key=lambda kind: kind.itemsize, default=np.dtype(np.uint8)
        )
        return allocate(name, np.dtype(np.int32) if name == "docs" else dtype, size)

    docs, frequencies, firsts = merged("docs"), merged("frequencies"), merged("firsts")
    cursor = indptr[:-1].copy()
    for batch in batches:
        shift = cursor[batch.terms] - (np.cumsum(batch.counts) - batch.counts)
        places = np.repeat(shift, batch.counts) + np.arange(len(batch.docs))
        docs[places], frequencies[places], firsts[places] = batch.docs, batch.frequencies, batch.firsts
        cursor[batch.terms] += batch.counts
    weights = allocate("weights", np.dtype(np.float64), size)
    bounds = allocate("bounds", np.dtype(np.float64), len(vocabulary))
    fill_weights(indptr, docs, frequencies, lengths, weights, bounds)
    shifts = allocate("shifts", np.dtype(np.uint8), len(vocabulary))
    shifts[:], n_fences = blocks(per_term, len(lengths))
    fence_starts = allocate("fence_starts", np.dtype(np.int64), len(vocabulary))
    fence_starts[:] = np.cumsum(n_fences) - n_fences
    fences = allocate("fences", np.dtype(np.int64), int(n_fences.sum()) + 1)
    fill_fences(indptr, docs, shifts, fence_starts, fences)
    bits = allocate("bits", np.dtype(np.int8), len(vocabulary))
    signatures = allocate("signatures", np.dtype(np.int64), len(lengths))
    fill_signatures(indptr, docs, bits, signatures)
    return BM25Index(
        vocabulary,
        indptr,
        docs,
        weights,
        len(lengths),
        frequencies,
        firsts,
        lengths,
        bounds,
        fences,
        fence_starts,
        shifts,
        signatures,
        bits,
        tokenizer,
    )


def without(index: BM25Index, places: Iterable[int]) -> BM25Index:
    """The index of the other documents, which move up.

    Raises:
        InputError: a place is no document of the index.
    """
    keep = np.ones(index.n_documents, dtype=bool)
    for place in places:
        if not 0 <= place < index.n_documents:
            raise InputError(
                f"bm25: document {place} is to be removed, but the index has documents 0 to "
                f"{index.n_documents - 1}"
            )
        keep[place] = False
    kept = keep[index.docs]
    terms = np.repeat(np.arange(len(index.vocabulary)), np.diff(index.indptr))[kept]
    docs = (np.cumsum(keep, dtype=np.int32) - np.int32(1))[index.docs[kept]]
    frequencies, firsts = index.frequencies[kept], index.firsts[kept]
    starts = np.flatnonzero(np.diff(terms, prepend=-1))
    counts = np.diff(starts, append=len(terms))
    # Terms are renumbered as a fresh build would number them: by first document, then place in it.
    order = np.lexsort((firsts[starts], docs[starts]))
    shift = starts[order] - (np.cumsum(counts[order]) - counts[order])
    places_of = np.repeat(shift, counts[order]) + np.arange(len(terms))
    words = list(index.vocabulary)
    vocabulary = {words[term]: number for number, term in enumerate(terms[starts[order]].tolist())}
    batch = Batch(
        np.arange(len(order), dtype=np.int32),
        counts[order],
        docs[places_of],
        frequencies[places_of].astype(_smallest(frequencies)),
        firsts[places_of].astype(_smallest(firsts)),
    )
    return assemble(vocabulary, [batch], np.asarray(index.lengths)[keep], index.tokenizer)
