"""Search the documents for each made question, and say at which rank its own chunk is found.

The ranks are reported and refuse nothing: they change with every document of the corpus, and the questions
about an unchanged document must stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrieval.corpus.mapped_items import Items
from retrieval.corpus.types import Document
from retrieval.evaluation.task_report import Progress
from retrieval.settings.context import ContextConfig
from retrieval.tasks.task_index import index_texts, open_index
from retrieval.text.labels import titled

DEPTH = 100
_AT = (1, 3, 10)
_BATCH = 256


def round_trip(
    config: ContextConfig,
    chunks: Items[Document],
    questions: Sequence[str],
    chunk_ids: Sequence[Sequence[str]],
    folder: Path,
    progress: Progress,
) -> tuple[list[int], dict[str, Any]]:
    """Return the rank of the best own chunk of each question by BM25 (0: not found), and the measures.

    Args:
        config: settings of the index.
        chunks: all chunks of the corpus.
        questions: the questions.
        chunk_ids: ids of the chunks that each question was made of.
        folder: folder of the index.
        progress: receives (step, done, total) while the work advances.
    """

    def texts() -> Any:
        return (titled(chunk.title, chunk.text) for chunk in chunks)

    # Its name is the title of the progress.
    index = folder / "round_trip"
    index.mkdir(exist_ok=True)
    index_texts(config, texts(), len(chunks), index, progress)
    ranker = open_index(config, texts, index)
    place = {name: number for number, name in enumerate(chunks.column("id"))}
    ranks: list[int] = []
    for start in range(0, len(questions), _BATCH):
        words = [ranker.tokenizer(question) for question in questions[start : start + _BATCH]]
        found, _ = ranker.search_batch(words, min(DEPTH, len(chunks)))
        for places, named in zip(found, chunk_ids[start : start + _BATCH], strict=True):
            own = {place[name] for name in named}
            ranks.append(next((rank for rank, at in enumerate(places, 1) if int(at) in own), 0))
    return ranks, measures(ranks)


def measures(ranks: Sequence[int]) -> dict[str, Any]:
    """Return recall at some depths, the mean reciprocal rank, and how many were not found."""
    total = len(ranks)
    if not total:
        return {"questions": 0}
    return {
        "questions": total,
        **{f"recall@{depth}": round(sum(0 < rank <= depth for rank in ranks) / total, 6) for depth in _AT},
        "mrr": round(sum(1 / rank for rank in ranks if rank) / total, 6),
        f"not_in_first_{DEPTH}": sum(rank == 0 for rank in ranks),
    }
