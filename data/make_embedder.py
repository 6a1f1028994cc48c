"""Fit the tiny embedder: `python data/make_embedder.py [--output data/tiny-embedder] [--dim 64]`.

One vector a token, averaged: latent semantic analysis (Deerwester et al. 1990) of the sample's posts and
documents. The count matrix of pieces in texts is weighted by log(1 + count) × idf and cut to its leading
singular vectors; each piece's vector is scaled by its idf, so that the plain mean which `StaticEmbedding`
takes weighs rare words more. The folder loads with `SentenceTransformer(path)` and needs no network.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from make_tokenizer import fit_tokenizer
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def sample_texts(sample: Path) -> Iterator[str]:
    """Every post and document of the sample as plain text."""
    for line in (sample / "threads.ndjson").read_text(encoding="utf-8").splitlines():
        for post in json.loads(line)["posts"]:
            yield re.sub(r"<[^>]*>|&gt;&gt;\d+", " ", post["com"])
    for line in (sample / "documents.jsonl").read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        yield f"{document['title']} {document['text']}"


def fit(texts: list[str], dim: int, seed: int) -> tuple[Tokenizer, np.ndarray]:
    """A tokenizer and its pieces' vectors, float32 [V, dim]."""
    tokenizer = fit_tokenizer(iter([*texts, *(" " + text for text in texts)]), vocab_size=3000)
    encoded = [np.asarray(e.ids) for e in tokenizer.encode_batch([" " + text for text in texts])]
    rows = np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded])
    shape = (len(encoded), tokenizer.get_vocab_size())
    counts = sp.csr_matrix((np.ones(len(rows)), (rows, np.concatenate(encoded))), shape=shape)
    counts.sum_duplicates()
    df = np.bincount(counts.indices, minlength=shape[1])
    idf = np.log((1 + len(texts)) / (1 + df))
    weighted = counts.copy()
    weighted.data = np.log1p(weighted.data)
    weighted = (weighted @ sp.diags(idf)).tocsc()
    start = np.random.default_rng(seed).normal(size=min(weighted.shape))
    _, values, vectors = svds(weighted, k=dim, v0=start, solver="arpack", return_singular_vectors=True)
    assert vectors is not None
    order = np.argsort(-values)
    # The first singular vector is the common mean of all text: it only blurs differences.
    directions = vectors[order][1:].T
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    return tokenizer, np.ascontiguousarray(unit * idf[:, None], dtype=np.float32)


def main() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=Path, default=HERE / "sample")
    parser.add_argument("--output", type=Path, default=HERE / "tiny-embedder")
    parser.add_argument("--dim", type=int, default=64)
    args = parser.parse_args()
    tokenizer, vectors = fit(list(sample_texts(args.sample)), args.dim, seed=0)
    modules: list[Any] = [StaticEmbedding(tokenizer, embedding_weights=vectors)]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save(str(args.output), create_model_card=False)
    print(f"wrote {args.output}: {vectors.shape[0]} pieces × {vectors.shape[1]}")


if __name__ == "__main__":
    main()
