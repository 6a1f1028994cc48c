"""A task's BM25 index in its work folder: built once in a stream, mapped by whoever builds a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from retrieval.bm25 import BM25Index, RankBM25Index, Ranker
from retrieval.bm25_build import BM25Builder
from retrieval.config import ContextConfig
from retrieval.report import Progress
from retrieval.text import Tokenizer

STEP = 4096


def index_texts(
    config: ContextConfig, texts: Iterable[str], count: int, folder: Path, progress: Progress
) -> None:
    """Indexes `count` texts; nothing is written for the rank_bm25 library, which cannot be stored."""
    if config.bm25_backend == "rank_bm25":
        return
    with BM25Builder(Tokenizer(config.bm25_stemmer), folder / "bm25") as builder:
        builder.add(_told(texts, count, f"{folder.name}: index", progress))
        builder.finish()


def open_index(config: ContextConfig, texts: Callable[[], Iterable[str]], folder: Path) -> Ranker:
    """The index of `index_texts`; the library's is made from the texts, which is for small corpora only."""
    if config.bm25_backend == "rank_bm25":
        tokenizer = Tokenizer(config.bm25_stemmer)
        return RankBM25Index(map(tokenizer, texts()), tokenizer)
    return BM25Index.load(folder / "bm25")


def _told(texts: Iterable[str], count: int, step: str, progress: Progress) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number % STEP == 0:
            progress(step, number, count)
        yield text
    progress(step, count, count)
