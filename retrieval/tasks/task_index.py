"""The BM25 index in a task's work folder, built once as a stream and mapped by each process that builds a
shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from retrieval.evaluation.task_report import Progress
from retrieval.search.bm25.builder import BM25Builder
from retrieval.search.bm25.folder import load_index
from retrieval.search.bm25.okapi_reference import RankBM25Index
from retrieval.search.bm25.ranker import Ranker
from retrieval.settings.context import ContextConfig

#: Documents between two reports of progress.
STEP = 4096
#: Ids of each ranking that `rankings.parquet` keeps.
RANKING_DEPTH = 20

Item = TypeVar("Item")


def index_texts(
    config: ContextConfig, texts: Iterable[str], count: int, folder: Path, progress: Progress
) -> None:
    """Build the BM25 index of texts in the work folder of a task.

    For the rank_bm25 library nothing is written, because its index cannot be stored.

    Args:
        config: names the backend, and what the terms of a text are.
        texts: the texts, read once.
        count: number of texts, for the progress.
        folder: the task's folder.
        progress: receives (step, done, total) while the work advances.
    """
    if config.bm25_backend == "rank_bm25":
        return
    # The `with` block removes temporary files if a text cannot be read.
    with BM25Builder(config.tokenizer_of_words, folder / "bm25") as builder:
        builder.add(counted(texts, f"{folder.name}: index", progress, count))
        builder.finish()


def open_index(config: ContextConfig, texts: Callable[[], Iterable[str]], folder: Path) -> Ranker:
    """Open the index that `index_texts` built.

    Args:
        config: names the backend, and what the terms of a text are.
        texts: returns the texts again. The rank_bm25 library builds its index from them in memory, which
            works for small corpora only.
        folder: the task's folder.
    """
    if config.bm25_backend == "rank_bm25":
        tokenizer = config.tokenizer_of_words
        return RankBM25Index(map(tokenizer, texts()), tokenizer)
    return load_index(folder / "bm25")


def counted(items: Iterable[Item], step: str, progress: Progress, total: int = 0) -> Iterator[Item]:
    """Yield the items unchanged, and report progress every `STEP` items.

    Args:
        items: the items.
        step: name of the step, for the progress.
        progress: receives (step, done, total) while the work advances.
        total: number of items; 0 if it is not known.
    """
    number = 0
    for number, item in enumerate(items, start=1):
        # At 1, not 0: the first item shows that the step has begun, also where an item takes long.
        if number % STEP == 1:
            progress(step, number - 1, total)
        yield item
    progress(step, number, number)
