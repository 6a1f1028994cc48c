"""One side of `bm25.py`, as a process of its own: builds an index over the corpus, then searches when asked.

ours          retrieval.search.bm25: streamed from the file, saved, opened memory-mapped
rank_bm25     the library whose scores are ours
bm25s         scipy arrays of scores made beforehand; with numba where so named (imports JAX)
tantivy       Lucene's algorithms in Rust
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import HostMemory, cores, serve

VOCABULARY = 500_000
LENGTHS = (6, 18)
QUERY = 8
QUERIES = 2000
K = 10

Found = tuple[Sequence[Sequence[int]], Sequence[Sequence[float]]]


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Words whose frequencies follow Zipf's law as Mandelbrot mended it."""
    share = np.cumsum(1 / (np.arange(1, VOCABULARY + 1) + 2.7) ** 1.05)
    drawn = np.searchsorted(share, rng.random(count) * share[-1])
    return [f"w{number}" for number in np.minimum(drawn, VOCABULARY - 1).tolist()]


def write_corpus(path: Path, documents: int, seed: int) -> int:
    """One document a line; returns how many words these are."""
    rng = np.random.default_rng(seed)
    total = 0
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, documents, 50_000):
            lengths = rng.integers(LENGTHS[0], LENGTHS[1] + 1, min(50_000, documents - start)).tolist()
            drawn = iter(words(rng, sum(lengths)))
            total += sum(lengths)
            file.writelines(" ".join(next(drawn) for _ in range(n)) + "\n" for n in lengths)
    return total


def make_queries(seed: int) -> list[list[str]]:
    """Queries drawn like the documents, so that frequent words stand in most of them."""
    drawn = iter(words(np.random.default_rng(seed + 1), QUERIES * QUERY))
    return [[next(drawn) for _ in range(QUERY)] for _ in range(QUERIES)]


def lines(path: Path) -> Iterator[str]:
    """The documents."""
    with path.open(encoding="utf-8") as file:
        yield from file


class Ours:
    """retrieval.search.bm25."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        from retrieval.search.bm25.builder import BM25Builder
        from retrieval.search.bm25.folder import load_index

        self._load_index, self._folder = load_index, folder
        self.memory, self.began = HostMemory(), time.perf_counter()
        with BM25Builder(folder=folder) as builder:
            builder.add(lines(corpus))
            self.index = builder.finish()

    def load(self) -> None:
        self.index = self._load_index(self._folder)

    def single(self, queries: list[list[str]]) -> None:
        for query in queries:
            self.index.search(query, K)

    def batch(self, queries: list[list[str]]) -> None:
        self.index.search_batch(queries, K)

    def found(self, queries: list[list[str]]) -> Found:
        places, scores = self.index.search_batch(queries, K)
        return places.tolist(), scores.tolist()


class RankBM25:
    """rank_bm25, with our selection of the best, which is quicker than its own sorting of all."""

    load = batch = None

    def __init__(self, corpus: Path, folder: Path) -> None:
        from rank_bm25 import BM25Okapi

        from retrieval.search.top_k import top_k

        self._top_k = top_k
        self.memory, self.began = HostMemory(), time.perf_counter()
        self.index = BM25Okapi([line.split() for line in lines(corpus)])

    def single(self, queries: list[list[str]]) -> None:
        for query in queries:
            self._top_k(self.index.get_scores(query), K)

    def found(self, queries: list[list[str]]) -> Found:
        scores = [self.index.get_scores(query) for query in queries]
        best = [self._top_k(row, K) for row in scores]
        return [row.tolist() for row in best], [s[b].tolist() for s, b in zip(scores, best, strict=True)]


class BM25S:
    """bm25s, scipy's products or numba."""

    def __init__(self, corpus: Path, folder: Path, backend: str = "numpy") -> None:
        import bm25s  # pyright: ignore[reportMissingImports] - of the extra `bench`

        self._bm25s, self._folder, self._backend = bm25s, folder, backend
        self.memory, self.began = HostMemory(), time.perf_counter()
        tokens = bm25s.tokenize(
            list(lines(corpus)), stopwords=None, token_pattern=r"(?u)\b\w+\b", show_progress=False
        )
        self.index = bm25s.BM25(k1=1.5, b=0.75, backend=backend)
        self.index.index(tokens, show_progress=False)

    def load(self) -> None:
        if not self._folder.exists():
            self.index.save(str(self._folder), show_progress=False)
        self.index = self._bm25s.BM25.load(str(self._folder), mmap=True)

    def single(self, queries: list[list[str]]) -> None:
        for query in queries:
            self.index.retrieve([query], k=K, show_progress=False)

    def batch(self, queries: list[list[str]]) -> None:
        self.index.retrieve(queries, k=K, show_progress=False, n_threads=cores())

    found = None


class BM25SNumba(BM25S):
    """bm25s compiled."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        super().__init__(corpus, folder, backend="numba")


class Tantivy:
    """tantivy, one segment, its queries parsed from text; it has no batches, so threads ask one by one."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        import tantivy  # pyright: ignore[reportMissingImports]

        self._tantivy, self._folder = tantivy, folder
        self.memory, self.began = HostMemory(), time.perf_counter()
        folder.mkdir()
        schema = tantivy.SchemaBuilder().add_text_field("body", index_option="freq").build()
        index = tantivy.Index(schema, path=str(folder))
        writer = index.writer(heap_size=512_000_000, num_threads=cores())
        for line in lines(corpus):
            writer.add_document(tantivy.Document(body=line))
        writer.commit()
        writer.wait_merging_threads()
        self.load()

    def load(self) -> None:
        self.index = self._tantivy.Index.open(str(self._folder))
        self.searcher = self.index.searcher()

    def single(self, queries: list[list[str]]) -> None:
        for query in queries:
            self.searcher.search(self.index.parse_query(" ".join(query), ["body"]), K)

    def batch(self, queries: list[list[str]]) -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(self.single, [queries[i :: cores()] for i in range(cores())]))

    found = None


SIDES: dict[str, Callable[[Path, Path], Any]] = {
    "ours": Ours,
    "rank_bm25": RankBM25,
    "bm25s": BM25S,
    "bm25s_numba": BM25SNumba,
    "tantivy": Tantivy,
}


def build(settings: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Builds the index and measures that; the functions search."""
    folder = Path(settings["folder"])
    side = SIDES[settings["side"]](folder / "corpus.txt", folder / settings["side"])
    built = time.perf_counter() - side.began
    memory = side.memory.report()
    queries = make_queries(settings["seed"])
    counts: dict[str, int] = {}

    def about() -> dict[str, Any]:
        loads = []
        for _ in range(5 if side.load else 0):
            start = time.perf_counter()
            side.load()
            loads.append(time.perf_counter() - start)
        # The first of bm25s saves the index, too.
        return {"build_seconds": built, "load_seconds": min(loads, default=None), **memory}

    def turn(kind: str, number: int) -> dict[str, Any]:
        search = getattr(side, kind)
        if search is None:
            return {"per_second": None}
        if kind not in counts:  # not counted: compiles, touches memory, finds how many queries fill a turn
            search(queries[:2])
            start, tried = time.perf_counter(), queries[: 2 if kind == "single" else 20]
            search(tried)
            per_query = (time.perf_counter() - start) / len(tried)
            counts[kind] = max(1, min(QUERIES, int(settings["turn"] / per_query)))
        first = number * counts[kind]
        asked = [queries[i % QUERIES] for i in range(first, first + counts[kind])]
        start = time.perf_counter()
        search(asked)
        return {"per_second": len(asked) / (time.perf_counter() - start), "queries": len(asked)}

    def found(count: int) -> dict[str, Any]:
        if side.found is None:
            return {}
        places, scores = side.found(queries[:count])
        return {"places": places, "scores": scores}

    return {"about": about, "turn": turn, "found": found}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    serve(build)
