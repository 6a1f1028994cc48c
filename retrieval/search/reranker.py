"""Reranking by a cross-encoder: a sentence-transformers model that reads question and candidate together.

It sees what a leg cannot, at a price a pair, so only the first of the fused ranking are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from retrieval.search.dense.faiss_index import DECIMALS
from retrieval.search.sentence_models import open_model

BATCH = 32


@dataclass(frozen=True)
class Reranker:
    """A loaded cross-encoder."""

    name: str
    model: Any

    def rerank(
        self, question: str, ranking: np.ndarray, text: Callable[[int], str], depth: int
    ) -> np.ndarray:
        """int64, as long as `ranking`: its first `depth` places by the model's score, then the rest.

        `text` gives a place's text. Ties keep their order. The pairs of a question are a batch of their own,
        and scores are cut, so that the other questions of a build decide nothing.
        """
        first = ranking[:depth]
        if len(first) < 2:
            return ranking
        pairs = [(question, text(place)) for place in first.tolist()]
        scores = np.asarray(self.model.predict(pairs, batch_size=BATCH, show_progress_bar=False))
        scores = np.round(np.nan_to_num(scores.astype(np.float64), nan=-np.inf), DECIMALS)
        order = np.lexsort((np.arange(len(first)), -scores))
        return np.concatenate([first[order], ranking[depth:]])


def load_reranker(reranker: str) -> Reranker:
    """Loads a cross-encoder from a folder or by public name.

    Raises:
        InputError: the folder is missing, or the model is no cross-encoder with one score a pair.
    """
    options = (
        "set reranker to a cross-encoder's folder or a public name (such as "
        "cross-encoder/ms-marco-MiniLM-L6-v2), or leave it empty and rerank_depth at 0"
    )

    def make(name: str) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(name)

    model, _ = open_model("reranker", reranker, "config.json", options, make)
    if model.num_labels != 1:
        raise InputError(
            f"reranker: {reranker} gives {model.num_labels} scores a pair; expected one; {options}"
        )
    return Reranker(reranker, model)
