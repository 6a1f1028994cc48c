"""Scores and rankings against the rank_bm25 library, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from retrieval.bm25 import BM25Index, RankBM25Index, build_index, top_k
from retrieval.text import tokenize

# A small alphabet makes terms in more than half of the documents, duplicates and ties common.
WORD = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "the", "of", "unknown"])
CORPUS = st.lists(st.lists(WORD, max_size=12), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(CORPUS, st.lists(WORD | st.just("never"), max_size=8))
def test_scores_equal_rank_bm25_bit_by_bit(corpus: list[list[str]], query: list[str]) -> None:
    index = BM25Index.build(corpus)
    if not any(corpus):  # the library divides by zero here
        assert not index.scores(query).any()
        return
    expected = BM25Okapi(corpus).get_scores(query)
    np.testing.assert_array_equal(index.scores(query), expected)
    best, scores = index.search(query, 5)
    order = sorted(range(len(corpus)), key=lambda i: (-expected[i], i))[:5]
    assert best.tolist() == order
    np.testing.assert_array_equal(scores, expected[order])


@settings(max_examples=100, deadline=None)
@given(CORPUS, st.lists(WORD, max_size=8), st.data())
def test_window_scores_are_a_slice_of_all_scores(
    corpus: list[list[str]], query: list[str], data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, len(corpus)))
    high = data.draw(st.integers(low, len(corpus)))
    index, library = BM25Index.build(corpus), RankBM25Index(corpus)
    expected = index.scores(query)[low:high]
    np.testing.assert_array_equal(index.window_scores(query, low, high), expected)
    np.testing.assert_allclose(library.window_scores(query, low, high), expected, atol=1e-12)
    np.testing.assert_array_equal(library.scores(query), index.scores(query))


def test_zipf_corpus_equals_rank_bm25() -> None:
    rng = np.random.default_rng(1)
    corpus = [[f"w{w}" for w in rng.zipf(1.3, size=rng.integers(0, 40)) if w < 500] for _ in range(400)]
    index, library = BM25Index.build(corpus), BM25Okapi(corpus)
    for _ in range(30):
        query = [f"w{w}" for w in rng.zipf(1.3, size=8)]
        np.testing.assert_array_equal(index.scores(query), library.get_scores(query))


@pytest.mark.parametrize("backend", ["csr", "rank_bm25"])
def test_empty_corpora_find_nothing(backend: str) -> None:
    assert len(build_index([], backend).scores(["a"])) == 0  # type: ignore[arg-type]
    assert build_index([[], []], backend).scores(["a"]).tolist() == [0, 0]  # type: ignore[arg-type]


def test_matrix_is_terms_by_documents() -> None:
    index = BM25Index.build([["a", "b"], ["b", "c"], ["d"], ["e"]])
    assert index.matrix.shape == (5, 4)
    np.testing.assert_array_equal(index.matrix[[index.vocabulary["b"]], :].toarray()[0], index.scores(["b"]))


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 40))
def test_top_k_breaks_ties_by_the_earlier_place(values: list[int], k: int) -> None:
    scores = np.array(values, dtype=np.float64)
    assert top_k(scores, k).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def test_tokens_fold_case_and_unicode_form() -> None:
    assert tokenize("Straße ＡＢＣ, naïve_x №5!") == ["strasse", "abc", "naïve_x", "no5"]
