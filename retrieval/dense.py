"""Dense retrieval: sentence-transformers vectors (by folder or public name) in a flat FAISS index.

Flat search is exact and right for offline building up to about a million vectors. torch comes with
sentence-transformers and is never named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.errors import InputError
from retrieval.sources import embedder_folder

BATCH = 256
CHUNK = 4096

#: Scores are cut to this many decimals before they rank: the same text embedded in another batch differs in
#: the seventh, and such noise must not decide between ties.
DECIMALS = 5


@dataclass(frozen=True)
class Embedder:
    """A loaded sentence-transformers model."""

    name: str
    model: Any

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """float32[len(texts), width]: unit vectors (zeros where the model knows no word); each text embedded
        once.
        """
        places: dict[str, int] = {}
        which = np.fromiter(
            (places.setdefault(t, len(places)) for t in texts), dtype=np.int64, count=len(texts)
        )
        # Sorted by length, a batch pads little; the dictionary's order settles equal lengths.
        unique = sorted(places, key=len)
        parts = []
        for start in range(0, len(unique), CHUNK):
            vectors = self.model.encode(
                unique[start : start + CHUNK],
                batch_size=BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            parts.append(np.nan_to_num(np.asarray(vectors, dtype=np.float32)))
            if progress:
                progress(min(start + CHUNK, len(unique)), len(unique))
        if not parts:
            return np.zeros((0, 1), dtype=np.float32)
        by_rank = np.concatenate(parts)
        rank = np.empty(len(unique), dtype=np.int64)
        rank[[places[text] for text in unique]] = np.arange(len(unique))
        return by_rank[rank[which]]


def load_embedder(embedder: str | None, field: str) -> Embedder:
    """Loads the configured model; `field` names the setting that asked for it.

    Raises:
        InputError: none is configured, the folder is missing or is no sentence-transformers model.
    """
    options = (
        "set embedder to a sentence-transformers folder (such as data/tiny-embedder) or a public name (such "
        "as sentence-transformers/all-MiniLM-L6-v2)"
    )
    if not embedder:
        raise InputError(
            f"{field} has the leg 'dense' but no embedder is configured; {options}, or leave 'dense' out"
        )
    folder = embedder_folder(embedder)
    if folder is not None and not (folder / "modules.json").is_file():
        raise InputError(f"embedder: {folder} holds no modules.json, so it is no such model; {options}")
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder) if folder else embedder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"embedder: {embedder} cannot be loaded ({reason}); {options}") from error
    return Embedder(embedder, model)


@dataclass(frozen=True)
class DenseIndex:
    """Unit vectors in a FAISS inner-product index; a score is a cosine."""

    index: Any
    n_documents: int

    @classmethod
    def build(cls, vectors: np.ndarray) -> DenseIndex:
        """Indexes float32[D, width] unit vectors."""
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index, len(vectors))

    def window_scores(self, query: np.ndarray, low: int, high: int) -> np.ndarray:
        """float32[high - low]: the cosines of documents low to high - 1 with one query vector."""
        import faiss

        out = np.zeros(high - low, dtype=np.float32)
        if high <= low:
            return out
        # FAISS turns a range selector over a flat index into a scan of just that slice.
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorRange(low, high))  # pyright: ignore[reportCallIssue]
        scores, places = self.index.search(query[None, :], high - low, params=parameters)
        found = places[0] >= 0
        out[places[0][found] - low] = scores[0][found]
        return np.round(out, DECIMALS)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(places int64[Q, k'], scores float32[Q, k']), best first, ties by the earlier document."""
        k = min(k, self.n_documents)
        scores, places = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        scores = np.round(scores, DECIMALS)
        order = np.lexsort((places, -scores), axis=-1)
        return np.take_along_axis(places, order, axis=1), np.take_along_axis(scores, order, axis=1)
