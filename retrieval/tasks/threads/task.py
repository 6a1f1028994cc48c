"""Reply records: which of the retrieved earlier posts does a comment reply to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from retrieval.corpus.mapped_items import Items, ItemSink, load_array, save_array, write_items
from retrieval.corpus.types import Post, Tally
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.guards.splits import cap, drop_across_splits, drop_near_duplicates, require_training
from retrieval.prompts import templates
from retrieval.prompts.token_budget import Count, token_count
from retrieval.readers.threads.registry import thread_format
from retrieval.search.bm25.index import Ranker
from retrieval.search.dense.embedder import Embedder
from retrieval.search.dense.faiss_index import cosines
from retrieval.search.fusion import Fusion, fuse
from retrieval.search.legs.leg import LegQuery
from retrieval.search.legs.rank_legs import rank_legs
from retrieval.search.reranker import Reranker, load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.task_index import index_texts, open_index
from retrieval.tasks.threads.record import thread_record
from retrieval.tasks.threads.store import Ask, AskRow, ThreadStore, store_threads
from retrieval.tasks.threads.window import window_start
from retrieval.text.normalize import duplicate_key

RANKING_DEPTH = 20


def prepare(
    config: ContextConfig, embedder: Embedder | None, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Reads, splits, thins and indexes the corpus into `folder`; returns the number of comments to build.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.threads
    assert task is not None
    task = task.model_copy(update={"format": thread_format(task)})
    threads = store_threads(config, task, folder, report.tally, progress)
    require_training(threads.rows.column("split"), "threads", "threads")
    content: list[bytes] = []
    with ItemSink(folder / "all-asks.arrow", AskRow) as sink:
        for row in _asks(threads, task, report.tally):
            sink.add(row)
            content.append(_content(threads.ask(row)))
    asks = Items(folder / "all-asks.arrow", AskRow)
    kept = _kept(config, task, threads, asks, content, report.tally)
    if not kept:
        raise InputError(
            "threads: no post replies to an earlier post; expected threads with quotelinks or annotations"
        )
    asks = write_items(folder / "asks.arrow", AskRow, (asks[number] for number in kept))
    (folder / "all-asks.arrow").unlink()
    index_texts(config, threads.texts(), len(threads.posts), folder, progress)
    if embedder and "dense" in task.legs:
        _Dense.build(threads, asks, embedder, progress, folder)
    return len(kept)


def _kept(
    config: ContextConfig,
    task: ThreadsTask,
    threads: ThreadStore,
    asks: Items[AskRow],
    content: Sequence[bytes],
    tally: Tally,
) -> list[int]:
    """Numbers of the asks that become records: no duplicates across splits, no more than asked for."""
    of = asks.numbers("thread").tolist()
    splits, ids = list(threads.rows.column("split")), list(threads.rows.column("id"))

    def split(number: int) -> str:
        return splits[of[number]]

    kept = drop_across_splits(
        range(len(asks)), split, lambda number: content[number], "duplicate_of_test_record", tally
    )
    kept = drop_near_duplicates(
        kept,
        split,
        lambda number: _said(threads.ask(asks[number])),
        config.near_duplicates,
        "near_duplicate_of_test_record",
        tally,
    )
    return cap(
        kept,
        split,
        lambda number: ids[of[number]],
        lambda number: threads.ask(asks[number]).name,
        (task.max_records, task.max_test_records),
        config.seed,
        tally,
    )


@dataclass(frozen=True)
class ThreadsWork:
    """What `prepare` wrote, opened to build records from."""

    task: ThreadsTask
    seed: int
    count: Count
    threads: ThreadStore
    asks: Items[AskRow]
    bm25: Ranker
    dense: _Dense | None
    reranker: Reranker | None

    def build(
        self, low: int, high: int, report: TaskReport
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(record, ranking) of the asks low to high - 1, in corpus order, without those that leak."""
        for number, row in zip(range(low, high), self.asks.run(low, high), strict=True):
            ask = self.threads.ask(row)
            legs = (self.bm25, self.dense, self.reranker)
            built = _build(ask, number, self.task, self.seed, self.count, *legs, report)
            if built is not None:
                yield built


def open_work(config: ContextConfig, folder: Path) -> ThreadsWork:
    """Opens what `prepare` wrote."""
    task = config.threads
    assert task is not None
    task = task.model_copy(update={"format": thread_format(task)})
    threads = ThreadStore(folder)
    bm25 = open_index(config, threads.texts, folder)
    dense = _Dense.open(folder) if "dense" in task.legs else None
    asks = Items(folder / "asks.arrow", AskRow)
    reranker = load_reranker(config.reranker) if config.reranker and task.rerank_depth else None
    return ThreadsWork(task, config.seed, token_count(config), threads, asks, bm25, dense, reranker)


def _asks(threads: ThreadStore, task: ThreadsTask, tally: Tally) -> Iterator[AskRow]:
    """Every comment that can become a record, the others counted by reason."""
    for number in range(len(threads.rows)):
        thread = threads.thread(number)
        split = thread.split
        places = {post.id: place for place, post in enumerate(thread.posts)}
        for place, post in enumerate(thread.posts):
            if not post.asks or not post.parents:
                tally.read["posts_without_parent" if post.asks else "posts_not_annotated"] += 1
                continue
            linked = [places[parent] for parent in post.parents]
            parents = tuple(parent for parent in linked if parent < place)
            tally.dropped["link_to_same_or_later_post"] += len(linked) - len(parents)
            if not parents:
                tally.dropped["comment_without_earlier_parent"] += 1
            elif not post.text:
                tally.dropped["comment_without_text"] += 1
            elif split == "train" and _unteachable(place, parents, task):
                tally.dropped["training_parent_outside_window"] += 1
            else:
                yield AskRow(number, place, parents, max(0, place - task.window))


def _unteachable(place: int, parents: Sequence[int], task: ThreadsTask) -> bool:
    """Whether a training prompt cannot hold any of the parents; of windows, `abstain` teaches those too."""
    if task.contexts == "window":
        return not task.abstain and max(parents) < window_start(place, task.n_contexts)
    return max(parents) < place - task.window


def _content(ask: Ask) -> bytes:
    parents = (ask.thread.posts[place].text for place in sorted(ask.parents))
    return duplicate_key(ask.comment.text, *parents)


def _said(ask: Ask) -> str:
    """The comment and what it answers, as one text."""
    parents = (ask.thread.posts[place].text for place in sorted(ask.parents))
    return "\n".join([ask.comment.text, *parents])


@dataclass(frozen=True)
class _Dense:
    """Vectors of the posts that some window holds (`places` maps a flat place to its row) and of the
    comments.
    """

    vectors: np.ndarray
    places: np.ndarray
    queries: np.ndarray

    @classmethod
    def build(
        cls,
        threads: ThreadStore,
        asks: Items[AskRow],
        embedder: Embedder,
        progress: Progress,
        folder: Path,
    ) -> None:
        """Embeds posts and comments and writes the vectors."""
        starts = threads.rows.numbers("start")[asks.numbers("thread")]
        last, low = asks.numbers("place") + starts, asks.numbers("low") + starts
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
    def open(cls, folder: Path) -> _Dense:
        """What `build` wrote."""
        return cls(*(load_array(folder / f"{name}.npy") for name in ("vectors", "places", "queries")))

    def window_scores(self, query: int, low: int, high: int) -> np.ndarray:
        first = int(self.places[low])
        return cosines(self.vectors[first : first + high - low], self.queries[query])


def _build(
    ask: Ask,
    number: int,
    task: ThreadsTask,
    seed: int,
    count: Count,
    bm25: Ranker,
    dense: _Dense | None,
    reranker: Reranker | None,
    report: TaskReport,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The record and ranking of one comment, or None where the record would leak its label (counted)."""
    candidates = ask.thread.posts[ask.low : ask.place]
    low, high = ask.start + ask.low, ask.start + ask.place
    gold = np.array([parent - ask.low for parent in ask.parents if parent >= ask.low], dtype=np.int64)
    absent = len(ask.parents) - len(gold)
    similar = {"bm25": bm25.window_scores(bm25.tokenizer(ask.comment.text), low, high)}
    if dense is not None:
        similar["dense"] = dense.window_scores(number, low, high)
    rankings = _rankings(ask, candidates, similar, task)
    if reranker is not None:
        rankings["reranked"] = reranker.rerank(
            ask.comment.text,
            rankings["fused"],
            lambda place: templates.thread_document(candidates[place].author, candidates[place].text),
            task.rerank_depth,
        )
    record = thread_record(
        ask.name,
        ask.thread.id,
        ask.thread.source,
        ask.split,
        ask.comment,
        candidates,
        _wanted(ask, rankings, task),
        gold.tolist(),
        [ask.thread.posts[place] for place in sorted(ask.parents)],
        task,
        seed,
        count,
        report,
    )
    if record is None:
        return None
    report.add_question(ask.split, ask.thread.id, ask.comment.text, ask.place - max(ask.parents))
    for leg, ranking in rankings.items():
        report.add_ranking(ask.split, leg, ranking, gold, absent)
    return record, _ranking(ask, candidates, rankings)


def _wanted(ask: Ask, rankings: Mapping[str, np.ndarray], task: ThreadsTask) -> list[int]:
    """Places of the candidates that the prompt may hold, the most wanted first: all as they are ranked, or
    those of its window from the newest back.
    """
    if task.contexts == "window":
        start = window_start(ask.place, task.n_contexts)
        return [place - ask.low for place in reversed(range(start, ask.place))]
    return rankings.get("reranked", rankings["fused"]).tolist()


def _rankings(
    ask: Ask, candidates: Sequence[Post], similar: Mapping[str, np.ndarray], task: ThreadsTask
) -> dict[str, np.ndarray]:
    """Every leg's ranking of the candidates, and `fused`; `similar` holds the scores of bm25 and dense."""
    query = LegQuery(ask.comment, candidates, ask.low, similar)
    # BM25 always ranks, because it is a baseline of the evaluation; it is fused only if the task has the leg.
    legs = rank_legs({*task.legs, "bm25"}, query)
    fusion = Fusion(task.fusion, task.rrf_k, task.weights)
    fused = {leg: ranking for leg, ranking in legs.items() if leg in task.legs}
    rankings = {leg: ranking.places for leg, ranking in legs.items()}
    rankings["fused"] = fuse(fused, len(candidates), fusion)
    return rankings


def _ranking(ask: Ask, candidates: Sequence[Post], rankings: dict[str, np.ndarray]) -> dict[str, Any]:
    posts = ask.thread.posts
    ids = [post.id for post in candidates]
    row: dict[str, Any] = {
        "id": ask.name,
        "context_id": ask.thread.id,
        "split": ask.split,
        "task": "threads",
        "candidate_ids": ids,
        "candidate_authors": [post.author for post in candidates],
        "opening_id": posts[0].id,
        "opening_author": posts[0].author,
        "gold_ids": [posts[place].id for place in ask.parents],
        "gold_authors": [posts[place].author for place in ask.parents],
    }
    for leg in (*LEGS, "fused", "reranked"):
        ranked = rankings.get(leg)
        row[leg] = [] if ranked is None else [ids[place] for place in ranked[:RANKING_DEPTH].tolist()]
    return row
