"""A task's BM25 index in its work folder: built once in a stream, mapped by whoever builds a shard."""

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
from retrieval.text.normalize import Tokenizer

#: Documents between two reports of progress.
STEP = 4096
#: Ids of each ranking that `rankings.parquet` keeps.
RANKING_DEPTH = 20

Item = TypeVar("Item")


def index_texts(
    config: ContextConfig, texts: Iterable[str], count: int, folder: Path, progress: Progress
) -> None:
    """Index texts by their words; nothing is written for the rank_bm25 library, which cannot be stored.

    Args:
        config: names the backend and the stemmer.
        texts: the texts, read once.
        count: their number, for the progress.
        folder: the task's folder.
        progress: receives (step, done, total) while the work advances.
    """
    if config.bm25_backend == "rank_bm25":
        return
    # The `with` block removes temporary files if a text cannot be read.
    with BM25Builder(Tokenizer(config.bm25_stemmer), folder / "bm25") as builder:
        builder.add(counted(texts, f"{folder.name}: index", progress, count))
        builder.finish()


def open_index(config: ContextConfig, texts: Callable[[], Iterable[str]], folder: Path) -> Ranker:
    """Open the index of `index_texts`.

    Args:
        config: names the backend and the stemmer.
        texts: returns the texts again. The rank_bm25 library's index is made from them in memory, which is
            for small corpora only.
        folder: the task's folder.
    """
    if config.bm25_backend == "rank_bm25":
        tokenizer = Tokenizer(config.bm25_stemmer)
        return RankBM25Index(map(tokenizer, texts()), tokenizer)
    return load_index(folder / "bm25")


def counted(items: Iterable[Item], step: str, progress: Progress, total: int = 0) -> Iterator[Item]:
    """Yield the items as they are, and report progress every `STEP` items.

    Args:
        items: the items.
        step: what is being done.
        progress: receives (step, done, total) while the work advances.
        total: their number; 0 where it is not known.
    """
    number = 0
    for number, item in enumerate(items, start=1):
        # At 1, not 0: the first item shows that the step has begun, also where an item takes long.
        if number % STEP == 1:
            progress(step, number - 1, total)
        yield item
    progress(step, number, number)
