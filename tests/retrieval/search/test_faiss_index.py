"""Nearest neighbours: flat against plain sorting, approximate kinds against flat, saved against built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jora_core.base.errors import InputError
from retrieval.search.dense import faiss_index
from retrieval.search.dense.faiss_index import DenseIndex, kind_for, recall_against_flat


def unit(rng: np.random.Generator, n: int, width: int = 16, clusters: int = 40) -> np.ndarray:
    """Vectors in clusters, as embeddings lie; isotropic ones would have no neighbours worth finding."""
    centres = rng.normal(size=(clusters, width))
    values = centres[rng.integers(clusters, size=n)] + 0.4 * rng.normal(size=(n, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def sorted_plainly(vectors: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.round(vectors.astype(np.float64) @ query.astype(np.float64), 5)
    best = np.lexsort((np.arange(len(vectors)), -scores))[:k]
    return best, scores[best]


def test_flat_search_is_plain_sorting_with_ties_by_the_earlier() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng, 3000)
    vectors[rng.integers(3000, size=400)] = vectors[17]  # far more ties than are asked for
    vectors[5:9] = 0
    queries = np.concatenate([vectors[[17, 20, 5]], unit(rng, 100)])
    index = DenseIndex.build(vectors)
    for k in (1, 10, 100, 2999, 5000):
        places, scores = index.search(queries, k)
        assert places.shape == (len(queries), min(k, 3000))
        for query, found, score in zip(queries, places, scores, strict=True):
            expected, exact = sorted_plainly(vectors, query, k)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(score, exact)


def test_no_documents_and_no_queries() -> None:
    empty = DenseIndex.build(np.zeros((0, 4), dtype=np.float32))
    places, scores = empty.search(np.ones((2, 4), dtype=np.float32), 10)
    assert places.shape == scores.shape == (2, 0)
    one = DenseIndex.build(np.ones((1, 4), dtype=np.float32))
    assert one.search(np.zeros((0, 4), dtype=np.float32), 10)[0].shape == (0, 1)


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    both = unit(rng, 10_100, clusters=200)
    return both[:10_000], both[10_000:]


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.95), ("sq8", 0.9), ("ivf_pq", 0.5)])
def test_kinds_are_measured_saved_and_mapped(
    kind: str, least: float, cloud: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    vectors, queries = cloud
    index = DenseIndex.build(vectors, kind)
    measured = recall_against_flat(index, vectors, queries, sample=50)
    assert measured["kind"] == kind and measured["queries"] == 50
    by_hand = [
        len(set(found.tolist()) & set(sorted_plainly(vectors, query, 10)[0].tolist())) / 10
        for query, found in zip(queries[::2], index.search(queries[::2], 10)[0], strict=True)
    ]
    assert measured["recall@10_against_flat"] >= least
    assert measured["recall@10_against_flat"] == pytest.approx(np.mean(by_hand), abs=0.02)
    index.save(tmp_path / "deeper" / "vectors.faiss")
    loaded = DenseIndex.load(tmp_path / "deeper" / "vectors.faiss")
    assert (loaded.kind, loaded.n_documents) == (kind, len(vectors))
    for ours, theirs in zip(index.search(queries, 20), loaded.search(queries, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [p.name for p in (tmp_path / "deeper").iterdir()] == ["vectors.faiss"]


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq"])
def test_an_index_is_the_same_whatever_the_threads(
    kind: str, cloud: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    np.save(tmp_path / "vectors.npy", cloud[0])
    code = (
        "import sys, faiss, numpy as np; from pathlib import Path;"
        "from retrieval.search.dense.faiss_index import DenseIndex;"
        "faiss.omp_set_num_threads(int(sys.argv[1]));"
        f"DenseIndex.build(np.load({str(tmp_path / 'vectors.npy')!r}), {kind!r}).save(Path(sys.argv[2]))"
    )
    for threads in ("1", "3"):
        subprocess.run([sys.executable, "-c", code, threads, str(tmp_path / threads)], check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_what_is_not_found_stands_at_the_end_as_minus_one(cloud: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, queries = cloud
    index = DenseIndex.build(vectors, "ivf_pq")
    index.index.nprobe = 1
    places, scores = index.search(queries, 500)
    missing = places < 0
    assert missing.any() and (scores[missing] == 0).all()
    assert all((np.diff(row.astype(int)) >= 0).all() for row in missing)
    measured = recall_against_flat(index, vectors, queries, k=500)
    assert 0 < measured["recall@500_against_flat"] < 0.9


def test_the_kind_by_size_and_its_refusals(tmp_path: Path) -> None:
    assert [kind_for("auto", n) for n in (0, 1_000_000, 1_000_001, 10_000_001)] == [
        "flat",
        "flat",
        "hnsw",
        "ivf_pq",
    ]
    assert kind_for("sq8", 3) == "sq8"
    with pytest.raises(
        InputError, match="ivf_pq learns from 9,984 vectors or more, but there are 50; choose flat"
    ):
        DenseIndex.build(np.ones((50, 4), dtype=np.float32), "ivf_pq")
    (tmp_path / "broken").write_bytes(b"no index")
    with pytest.raises(InputError, match="broken: no readable FAISS index"):
        DenseIndex.load(tmp_path / "broken")


def test_a_gpu_index_is_used_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cloud: tuple[np.ndarray, np.ndarray]
) -> None:
    """faiss-gpu's two functions stand in: the copy is asked, and its order decides nothing."""
    import faiss

    class Shuffled:
        asked = 0

        def __init__(self, index: faiss.Index) -> None:
            self.index = index

        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            Shuffled.asked += len(queries)
            scores, places = self.index.search(queries, k)
            return scores[:, ::-1] + 1e-7, places[:, ::-1]

    expected = DenseIndex.build(cloud[0]).search(cloud[1], 10)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", Shuffled, raising=False)
    index = DenseIndex.build(cloud[0])
    for ours, theirs in zip(index.search(cloud[1], 10), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert Shuffled.asked == len(cloud[1])
    index.search(cloud[1], faiss_index._MAX_GPU_K)  # more than a GPU can give goes to the CPU
    assert Shuffled.asked == len(cloud[1])
    assert DenseIndex.build(cloud[0][:100], "hnsw").on_gpus is None
