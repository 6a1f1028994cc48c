"""Indexes of unit vectors for nearest-neighbour search. FAISS proposes neighbours, exact cosines decide.

The kinds of index, for vectors of d numbers:

- `flat`: all vectors, exact; right for offline building of up to about a million of them. 4d bytes for each
  vector.
- `hnsw`: a graph over all vectors, fast to search. One thread builds it, because the graph would otherwise
  depend on which thread came first.
- `sq8`: all vectors, one byte for each number.
- `ivf_pq`: cells of product-quantised vectors, d/4 bytes each, for tens of millions.

`auto` is flat up to a million vectors, hnsw up to ten million, ivf_pq above. `recall_against_flat` measures
the recall of an approximate index.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import InputError
from retrieval.search.top_k import top_k

Kind = Literal["flat", "hnsw", "ivf_pq", "sq8"]
FLAT_LIMIT = 1_000_000
HNSW_LIMIT = 10_000_000

#: Scores are rounded to this many decimals before they rank. The same text embedded in another batch differs
#: in the seventh decimal, and such noise must not decide a tie.
DECIMALS = 5
#: The most that a score of FAISS differs from the exact one: FAISS sums in float32, in an order of its own.
_NOISE = 2e-6
#: FAISS searches this many more neighbours than wanted, so that ties at the last place show.
_MARGIN = 32
#: Queries, and rows of vectors, that are handled at a time.
_QUERIES = 64
_ROWS = 1 << 16
#: Product quantisation learns 256 centres, and FAISS warns below 39 vectors for each.
_LEAST_FOR_PQ = 256 * 39
#: FAISS on a GPU finds no more than this many neighbours.
_MAX_GPU_K = 2048


def kind_for(kind: Literal["auto"] | Kind, n: int) -> Kind:
    """Return the kind of index for n vectors."""
    if kind != "auto":
        return kind
    return "flat" if n <= FLAT_LIMIT else "hnsw" if n <= HNSW_LIMIT else "ivf_pq"


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return float64[D]: the cosines of unit vectors float32[D, width] with a query float32[width].

    The products are summed in double precision, so that the order of the sum does not change the rounded
    result.
    """
    # A matrix product over float32 depends on the number of rows and threads in its last bits.
    return np.round(vectors.astype(np.float64) @ query.astype(np.float64), DECIMALS)


@dataclass(frozen=True)
class DenseIndex:
    """A FAISS inner-product index of unit vectors, whose scores are therefore cosines.

    `on_gpus` is a copy of the index on all GPUs. It is None without faiss-gpu or a GPU.
    """

    index: Any
    n_documents: int
    kind: Kind = "flat"
    on_gpus: Any = None

    @classmethod
    def build(cls, vectors: np.ndarray, kind: Kind = "flat", seed: int = 0) -> DenseIndex:
        """Build an index of unit vectors. The same vectors, kind and seed give the same index.

        Args:
            vectors: float32[D, width].
            kind: kind of index.
            seed: seed of the clustering of `ivf_pq`.

        Raises:
            InputError: there are too few vectors for the kind.
        """
        # FAISS reads the memory directly: other types or strides are refused or copied by its wrapper.
        values = np.ascontiguousarray(vectors, dtype=np.float32)
        index = _empty(kind, len(values), values.shape[1], seed)
        # The links of an HNSW node depend on which nodes are in the graph already, thus on the order of the
        # threads.
        with _threads(1 if kind == "hnsw" else None):
            if not index.is_trained:
                index.train(values)
            index.add(values)
        return cls(index, len(values), kind, _on_gpus(index, kind))

    @classmethod
    def load(cls, path: Path) -> DenseIndex:
        """Open a saved index. Its file is mapped into memory and not read.

        Raises:
            InputError: the file is missing or holds no such index.
        """
        import faiss

        try:
            # Mapped, because each of many worker processes opens it: they share one copy in the page cache.
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        # FAISS has one exception for everything, from a missing file to a wrong magic number.
        except RuntimeError as error:
            raise InputError(f"{path}: no readable FAISS index; build it again") from error
        kinds: dict[str, Kind] = {
            "IndexFlatIP": "flat",
            "IndexFlat": "flat",
            "IndexHNSWFlat": "hnsw",
            "IndexScalarQuantizer": "sq8",
            "IndexIVFPQ": "ivf_pq",
        }
        name = type(index).__name__
        if name not in kinds:
            raise InputError(f"{path}: holds {name}; expected one of {', '.join(kinds)}")
        return cls(index, int(index.ntotal), kinds[name], _on_gpus(index, kinds[name]))

    def save(self, path: Path) -> None:
        """Write the index to a file, which is either complete or absent.

        Raises:
            InputError: the file cannot be written.
        """
        import faiss

        try:
            with atomic_path(path) as temporary:
                faiss.write_index(self.index, str(temporary))
        except RuntimeError as error:
            raise InputError(f"{path}: cannot be written ({error}); check free space") from error

    @property
    def vectors(self) -> np.ndarray:
        """Return float32[D, width]: the vectors of a flat index, without a copy."""
        import faiss

        if self.kind != "flat":
            raise ValueError(f"an index of kind {self.kind} does not hold its vectors as they are")
        width = self.index.d
        # A view of FAISS's own memory, valid as long as the index is referenced.
        return faiss.rev_swig_ptr(self.index.get_xb(), self.n_documents * width).reshape(-1, width)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest documents of each query.

        Args:
            queries: float32[Q, width] unit vectors.
            k: number of documents to find; at most D are found.

        Returns:
            (documents int64[Q, min(k, D)], scores float64 of the same shape), best first; the earlier
            document wins a tie. A flat index gives the exact best k. Other kinds may find fewer. Then -1
            with score 0 fills the end of the row.
        """
        k = min(k, self.n_documents)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.kind == "flat":
            return self._search_exactly(queries, k)
        scores, places = self._find(queries, k)
        # -inf moves the empty places (-1) behind all found ones in the sort below.
        scores = np.where(places < 0, -np.inf, np.round(scores.astype(np.float64), DECIMALS))
        # FAISS returns ties in any order. After rounding there are more ties, and the earlier document wins
        # them.
        order = np.lexsort((places, -scores), axis=-1)
        places, scores = np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1)
        return places, np.where(places < 0, 0.0, scores)

    def _find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        parameters = None
        if self.kind == "hnsw":
            make: Any = faiss.SearchParametersHNSW  # pyright: ignore[reportAttributeAccessIssue]
            # How many candidates the walk keeps: twice k for recall, and 128 for small k.
            parameters = make(efSearch=max(128, 2 * k))
        # A GPU index has a hard limit on k. Beyond it the copy in main memory is slower, but works.
        index = self.on_gpus if self.on_gpus is not None and k <= _MAX_GPU_K else self.index
        return index.search(queries, k, params=parameters) if parameters else index.search(queries, k)

    def _search_exactly(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the exact best k documents of each query.

        FAISS proposes slightly more than k documents, and their exact cosines decide. If a document that was
        not proposed could tie with the k-th best, all documents are scored.
        """
        places = np.zeros((len(queries), k), dtype=np.int64)
        scores = np.zeros((len(queries), k))
        if k == 0:
            return places, scores
        # The margin makes the full scan below rare: it runs only if the proposed documents after
        # the k-th one all tie with it.
        vectors, wide = self.vectors, min(k + _MARGIN, self.n_documents)
        for start in range(0, len(queries), _QUERIES):
            part = queries[start : start + _QUERIES]
            # Sorted by place, so that `top_k` breaks ties by document number and the rows are read in order.
            found = np.sort(self._find(part, wide)[1], axis=1)
            for row, query in enumerate(part):
                exact = cosines(vectors[found[row]], query)
                best = top_k(exact, k)
                # The best exact score that a document which was not proposed can have.
                unseen = np.round(exact.min() + _NOISE, DECIMALS)
                if wide < self.n_documents and unseen >= exact[best[-1]]:
                    exact = np.concatenate(
                        [cosines(vectors[at : at + _ROWS], query) for at in range(0, len(vectors), _ROWS)]
                    )
                    best = top_k(exact, k)
                    places[start + row] = best
                else:
                    places[start + row] = found[row][best]
                scores[start + row] = exact[best]
        return places, scores


def recall_against_flat(
    index: DenseIndex, vectors: np.ndarray, queries: np.ndarray, k: int = 10, sample: int = 200
) -> dict[str, Any]:
    """Measure the recall of an index: the share of the exact best k documents that it finds.

    Args:
        index: the index.
        vectors: float32[D, width], all vectors of the index.
        queries: float32[Q, width].
        k: number of neighbours.
        sample: number of queries that are searched exactly, evenly spaced over all queries.

    Returns:
        `{"kind", "recall@k_against_flat", "queries"}`. Whatever scores at least the k-th best score counts as
        found, so that a tie is no miss.
    """
    k = min(k, len(vectors))
    # Evenly spaced, not the first ones: a corpus is often sorted by topic or time.
    chosen = queries[np.unique(np.linspace(0, len(queries) - 1, min(sample, len(queries))).astype(int))]
    found, _ = index.search(chosen, k)
    hits = 0
    for query, places in zip(chosen, found, strict=True):
        # In parts, because converting all vectors to float64 at once would double their memory.
        exact = np.concatenate(
            [cosines(vectors[at : at + _ROWS], query) for at in range(0, len(vectors), _ROWS)]
        )
        kth_best = np.partition(exact, len(exact) - k)[len(exact) - k]
        hits += int((exact[places[places >= 0]] >= kth_best).sum())
    share = round(hits / (k * len(chosen)), 6) if k and len(chosen) else None
    return {"kind": index.kind, f"recall@{k}_against_flat": share, "queries": len(chosen)}


def _empty(kind: Kind, n: int, width: int, seed: int) -> Any:
    """Return an empty index of a kind for n vectors."""
    import faiss

    inner = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "sq8":
        return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, inner)
    if kind == "hnsw":
        # M = 32: up to 64 links for each node on the lowest level, 256 bytes beside its vector.
        index = faiss.IndexHNSWFlat(width, 32, inner)
        index.hnsw.efConstruction = 200
        return index
    if n < _LEAST_FOR_PQ:
        raise InputError(
            f"dense_index: ivf_pq learns from {_LEAST_FOR_PQ:,} vectors or more, but there are {n:,}; "
            "choose flat (exact, right up to a million) or leave auto"
        )
    # 4·sqrt(n) cells, as FAISS recommends for a million vectors, each learnt from 39 vectors or more.
    cells = max(1, min(int(4 * n**0.5), n // 39))
    # Parts of four numbers where the width allows: d/4 bytes for each vector.
    # The number of parts must divide the width.
    parts = next(width // size for size in (4, 8, 6, 5, 3, 2, 1) if width % size == 0)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, cells, parts, 8, inner)
    index.cp.seed = index.pq.cp.seed = seed + 1  # FAISS takes 0 for "draw a seed"
    # A search reads about a thirty-second of the cells. FAISS's default of one cell misses most neighbours.
    index.nprobe = min(cells, max(16, cells // 32))
    return index


def _on_gpus(index: Any, kind: Kind) -> Any:
    """Copy the index to all GPUs.

    Return None without faiss-gpu or a GPU, or for a kind that GPUs do not have.
    """
    import faiss

    # Not every build of FAISS has the function; `int()` is 0.
    gpus = getattr(faiss, "get_num_gpus", int)()
    if gpus < 1 or kind == "hnsw" or not hasattr(faiss, "index_cpu_to_all_gpus"):
        return None
    return faiss.index_cpu_to_all_gpus(index)


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Run FAISS with n threads in a `with` block. None does not change the number."""
    import faiss

    before = faiss.omp_get_max_threads()
    if n is not None:
        faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
