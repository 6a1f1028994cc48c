"""Vectors of the dense leg: of the comments, and of the posts that they may answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.corpus.mapped_items import load_array, save_array
from retrieval.evaluation.task_report import Progress
from retrieval.search.dense.embedder import Embedder
from retrieval.search.dense.faiss_index import cosines
from retrieval.tasks.threads.store import ThreadStore


@dataclass(frozen=True)
class ThreadVectors:
    """Vectors of the comments, and of the posts that are a candidate of a reply.

    Attributes:
        vectors: float32[posts, D], the candidates.
        places: int64[all posts], the row of a post's vector.
        queries: float32[comments, D].
    """

    vectors: np.ndarray
    places: np.ndarray
    queries: np.ndarray

    @classmethod
    def build(
        cls,
        threads: ThreadStore,
        messages: np.ndarray,
        embedder: Embedder,
        progress: Progress,
        folder: Path,
    ) -> None:
        """Embed the posts and comments, and write their vectors.

        Args:
            threads: the corpus.
            messages: int64[M, 3], thread, place and first candidate of each comment; those that become
                records come first.
            embedder: the model.
            progress: receives (step, done, total) while the work advances.
            folder: folder of the vectors.
        """
        thread, place, first_candidate = messages.T
        starts = threads.rows.numbers("start")[thread]
        last, low = place + starts, first_candidate + starts
        # Posts that are no candidate (after the last reply of a thread, outside of all windows) are not
        # embedded.
        wanted = np.zeros(len(threads.posts), dtype=bool)
        for first, end in zip(low.tolist(), last.tolist(), strict=True):
            wanted[first:end] = True
        texts = [text for text, want in zip(threads.texts(), wanted.tolist(), strict=True) if want]
        vectors = embedder.encode(texts, lambda done, total: progress("threads: embed", done, total))
        queries = embedder.encode(
            [threads.posts.value("text", place) for place in last.tolist()],
            lambda done, total: progress("threads: embed comments", done, total),
            "query",
        )
        # A window is a run of posts that are all wanted, so it is a run of rows too.
        save_array(folder / "vectors.npy", vectors)
        save_array(folder / "queries.npy", queries)
        save_array(folder / "places.npy", np.cumsum(wanted) - 1)

    @classmethod
    def open(cls, folder: Path) -> ThreadVectors:
        """Map the vectors that `build` wrote."""
        return cls(*(load_array(folder / f"{name}.npy") for name in ("vectors", "places", "queries")))

    def window_scores(self, query: int, low: int, high: int) -> np.ndarray:
        """Return float32[high - low], the cosines of a comment with the posts `low` to `high - 1`.

        Args:
            query: number of the comment.
            low: place of the first post in the flat corpus.
            high: place after the last post.
        """
        first = int(self.places[low])
        return cosines(self.vectors[first : first + high - low], self.queries[query])
