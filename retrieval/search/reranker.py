"""Rerank candidates with a cross-encoder: a model that reads question and candidate together.

A cross-encoder compares the two texts word by word, which no leg can, but each pair costs a model call. So it
reads only the first candidates of the fused ranking. The model is one of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from retrieval.search.dense.faiss_index import DECIMALS
from retrieval.search.sentence_models import open_model

#: Pairs that the model reads at a time.
BATCH = 32


@dataclass(frozen=True)
class Reranker:
    """A loaded cross-encoder."""

    name: str
    model: Any

    def rerank(
        self, question: str, ranking: np.ndarray, text: Callable[[int], str], depth: int
    ) -> np.ndarray:
        """Sort the first `depth` places of a ranking by the scores of the cross-encoder.

        Args:
            question: text of the question or comment.
            ranking: int64[M] places, best first.
            text: returns the text of a place.
            depth: number of places that the model reads.

        Returns:
            int64[M]: the first `depth` places by the model's score, then the others as they were. Ties keep
            their order.
        """
        first = ranking[:depth]
        # One candidate has nothing to be compared with; the model call is saved.
        if len(first) < 2:
            return ranking
        pairs = [(question, text(place)) for place in first.tolist()]
        # One question is one batch, and scores are rounded: the last bits depend on the other texts of a
        # batch, and another question of the build must not decide a tie.
        scores = np.asarray(self.model.predict(pairs, batch_size=BATCH, show_progress_bar=False))
        # A model in half precision may give NaN for a pair; it then comes last instead of anywhere.
        scores = np.round(np.nan_to_num(scores.astype(np.float64), nan=-np.inf), DECIMALS)
        order = np.lexsort((np.arange(len(first)), -scores))
        return np.concatenate([first[order], ranking[depth:]])


def load_reranker(reranker: str) -> Reranker:
    """Load a cross-encoder from a folder or by its public name.

    Raises:
        InputError: the folder is missing, or the model is no cross-encoder that gives one score for each
            pair.
    """
    options = (
        "set reranker to a cross-encoder's folder or a public name (such as "
        "cross-encoder/ms-marco-MiniLM-L6-v2), or leave it empty and rerank_depth at 0"
    )

    def make(name: str) -> Any:
        # Here, because it imports torch, which takes seconds.
        from sentence_transformers import CrossEncoder

        return CrossEncoder(name)

    model, _ = open_model("reranker", reranker, "config.json", options, make)
    # A classifier (such as an entailment model) also loads as a cross-encoder, with three scores for each
    # pair.
    if model.num_labels != 1:
        raise InputError(
            f"reranker: {reranker} gives {model.num_labels} scores for each pair; expected one; {options}"
        )
    return Reranker(reranker, model)
