"""Scores and rankings against the rank_bm25 library, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from retrieval.search.bm25 import index, maxscore
from retrieval.search.bm25.builder import build_index, build_ranker
from retrieval.search.bm25.folder import load_index, save_index
from retrieval.search.bm25.index import BM25Index
from retrieval.search.bm25.okapi_reference import RankBM25Index
from retrieval.search.top_k import top_k
from retrieval.text.normalize import tokenize

BACKENDS: tuple[Literal["csr"], Literal["rank_bm25"]] = ("csr", "rank_bm25")
# A small alphabet makes terms in more than half of the documents, duplicates and ties common.
WORD = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "the", "of", "unknown"])
CORPUS = st.lists(st.lists(WORD, max_size=12), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(CORPUS, st.lists(WORD | st.just("never"), max_size=8))
def test_scores_equal_rank_bm25_bit_by_bit(corpus: list[list[str]], query: list[str]) -> None:
    index = build_index(corpus)
    if not any(corpus):  # the library divides by zero here
        assert not index.scores(query).any()
        return
    assume(len(corpus) >= 3)  # of fewer documents the library weighs no term more than 0
    expected = BM25Okapi(corpus).get_scores(query)
    np.testing.assert_array_equal(index.scores(query), expected)
    best, scores = index.search(query, 5)
    order = sorted(range(len(corpus)), key=lambda i: (-expected[i], i))[:5]
    assert best.tolist() == order
    np.testing.assert_array_equal(scores, expected[order])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("corpus", [["a kettle"], ["a kettle", "a lamp"], ["a lamp", "a lamp kettle"]])
def test_of_two_documents_the_one_with_the_word_is_first(
    backend: Literal["csr", "rank_bm25"], corpus: list[str]
) -> None:
    index = build_ranker([text.split() for text in corpus], backend)
    best, scores = index.search(["the", "kettle"], 2)
    assert "kettle" in corpus[best[0]] and scores[0] > 0
    np.testing.assert_array_equal(
        index.scores(["kettle"]), build_index([t.split() for t in corpus]).scores(["kettle"])
    )


@settings(max_examples=100, deadline=None)
@given(CORPUS, st.lists(WORD, max_size=8), st.data())
def test_window_scores_are_a_slice_of_all_scores(
    corpus: list[list[str]], query: list[str], data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, len(corpus)))
    high = data.draw(st.integers(low, len(corpus)))
    index, library = build_index(corpus), RankBM25Index(corpus)
    expected = index.scores(query)[low:high]
    np.testing.assert_array_equal(index.window_scores(query, low, high), expected)
    np.testing.assert_allclose(library.window_scores(query, low, high), expected, atol=1e-12)
    np.testing.assert_array_equal(library.scores(query), index.scores(query))


def test_zipf_corpus_equals_rank_bm25() -> None:
    rng = np.random.default_rng(1)
    corpus = [[f"w{w}" for w in rng.zipf(1.3, size=rng.integers(0, 40)) if w < 500] for _ in range(400)]
    index, library = build_index(corpus), BM25Okapi(corpus)
    for _ in range(30):
        query = [f"w{w}" for w in rng.zipf(1.3, size=8)]
        np.testing.assert_array_equal(index.scores(query), library.get_scores(query))


@pytest.mark.parametrize("backend", ["csr", "rank_bm25"])
def test_empty_corpora_find_nothing(backend: str) -> None:
    assert len(build_ranker([], backend).scores(["a"])) == 0  # type: ignore[arg-type]
    assert build_ranker([[], []], backend).scores(["a"]).tolist() == [0, 0]  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 40))
def test_top_k_breaks_ties_by_the_earlier_place(values: list[int], k: int) -> None:
    scores = np.array(values, dtype=np.float64)
    assert top_k(scores, k).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def test_tokens_fold_case_and_unicode_form() -> None:
    assert tokenize("Straße ＡＢＣ, naïve_x №5!") == ["strasse", "abc", "naïve_x", "no5"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index counts as large, and every list of postings as worth leaving out."""
    monkeypatch.setattr(index, "LARGE", 0)
    monkeypatch.setattr(maxscore, "SKIP_LENGTH", 0)


def reference(index: BM25Index, query: list[str], k: int) -> tuple[list[int], list[float]]:
    scores = index.scores(query)
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    return best, scores[best].tolist()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CORPUS, st.lists(st.lists(WORD | st.just("never"), max_size=8), max_size=5), st.integers(0, 14))
def test_compiled_search_equals_the_reference_bit_by_bit(
    compiled: None, corpus: list[list[str]], queries: list[list[str]], k: int
) -> None:
    index = build_index(corpus)
    expected = [reference(index, query, k) for query in queries]
    places, scores = index.search_batch(queries, k)
    assert [(p.tolist(), s.tolist()) for p, s in zip(places, scores, strict=True)] == expected
    for query, (best, best_scores) in zip(queries, expected, strict=True):
        found, found_scores = index.search(query, k)
        assert (found.tolist(), found_scores.tolist()) == (best, best_scores)
        assert found.dtype == np.int64 and found_scores.dtype == np.float64


@pytest.mark.parametrize("k", [1, 10, 100])
def test_compiled_search_of_a_large_index_in_threads(k: int, tmp_path: Path) -> None:
    """Lists long enough to be left out, many ties, mapped arrays."""
    rng = np.random.default_rng(k)
    corpus = [[f"w{w}" for w in rng.zipf(1.2, size=rng.integers(0, 24)) if w < 3000] for _ in range(20_000)]
    save_index(build_index(corpus), tmp_path / "index")
    index = load_index(tmp_path / "index")
    assert index.is_large
    queries = [[f"w{w}" for w in rng.zipf(1.2, size=8)] for _ in range(100)]
    queries += [[], ["never"], ["w1"], ["w2", "w1", "w2"], ["w2000", "w1"], [f"w{n}" for n in range(1, 40)]]
    places, scores = index.search_batch(queries, k, threads=3)
    for number, query in enumerate(queries):
        expected = index.scores(query)
        best = top_k(expected, k)
        np.testing.assert_array_equal(places[number], best)
        np.testing.assert_array_equal(scores[number], expected[best])


def test_negative_weights_are_never_compiled(compiled: None) -> None:
    """Where all terms are in more than half of the documents, their floor is negative, too."""
    index = build_index([["a", "b"], ["a", "b"], ["a"]])
    assert index.scores(["a"]).max() < 0 and not index.is_large
    assert index.search(["b"], 2)[0].tolist() == [2, 0]
    assert build_index([["a"], ["b"], ["c"]]).is_large


def test_backends_search_alike() -> None:
    corpus = [["a", "b"], ["b", "c"], ["d"], ["e"], ["b", "d"]]
    queries = [["b"], ["a", "d"], ["never"], []]
    ours, theirs = (build_ranker(corpus, backend).search_batch(queries, 3) for backend in BACKENDS)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
