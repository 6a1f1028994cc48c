"""Reply records: which of the retrieved earlier posts does a comment reply to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval import guards, hybrid, prompts
from retrieval.bm25 import Ranker, build_index
from retrieval.config import LEGS, ContextConfig, ThreadsTask
from retrieval.corpus import Post, Tally, Thread
from retrieval.dense import DenseIndex, Embedder
from retrieval.errors import InputError
from retrieval.legs import conversation_legs
from retrieval.readers.threads import read_threads
from retrieval.report import Progress, TaskReport
from retrieval.sources import thread_format
from retrieval.text import Tokenizer, duplicate_key

RANKING_DEPTH = 20


@dataclass(frozen=True)
class _Ask:
    """A comment to ask about: places within its thread, and where the thread starts in the flat corpus."""

    thread: Thread
    split: str
    start: int
    place: int
    parents: tuple[int, ...]
    low: int

    @property
    def comment(self) -> Post:
        return self.thread.posts[self.place]

    @property
    def name(self) -> str:
        return f"threads:{self.thread.id}:{self.comment.id}"


def thread_records(
    config: ContextConfig, embedder: Embedder | None, report: TaskReport, progress: Progress
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(record, ranking) of every post with an earlier parent, in corpus order.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.threads
    assert task is not None
    task = task.model_copy(update={"format": thread_format(task)})
    threads = _read(task, report.tally, progress)
    splits = _splits(config, task, threads)
    guards.require_training(splits, "threads", "threads")
    asks = _asks(threads, splits, task, report.tally)
    asks = guards.drop_across_splits(
        asks, lambda a: a.split, _content, "duplicate_of_test_record", report.tally
    )
    asks = guards.drop_near_duplicates(
        asks, lambda a: a.split, _said, config.near_duplicates, "near_duplicate_of_test_record", report.tally
    )
    limits = (task.max_records, task.max_test_records)
    asks = guards.cap(
        asks, lambda a: a.split, lambda a: a.thread.id, lambda a: a.name, limits, config.seed, report.tally
    )
    if not asks:
        raise InputError(
            "threads: no post replies to an earlier post; expected threads with quotelinks or annotations"
        )
    posts = [post for thread in threads for post in thread.posts]
    progress("threads: index", 0, len(posts))
    tokenizer = Tokenizer(config.bm25_stemmer)
    documents = (tokenizer(prompts.thread_document(p.author, p.text)) for p in posts)
    bm25 = build_index(documents, config.bm25_backend, tokenizer)
    dense = _Dense.build(posts, asks, embedder, progress) if embedder and "dense" in task.legs else None
    for number, ask in enumerate(asks):
        if number % 500 == 0:
            progress("threads: records", number, len(asks))
        built = _build(ask, number, task, bm25, dense, report)
        if built is not None:
            yield built
    progress("threads: records", len(asks), len(asks))


def _read(task: ThreadsTask, tally: Tally, progress: Progress) -> list[Thread]:
    """All threads in source order, each id once (a test thread wins over its double in training)."""
    threads: dict[str, Thread] = {}
    for thread in read_threads(task, tally):
        if thread.id in threads:
            tally.dropped["thread_twice"] += 1
            if threads[thread.id].split == "test" or thread.split != "test":
                continue
        threads[thread.id] = thread
        if len(threads) % 500 == 0:
            progress("threads: read", len(threads), 0)
    if not threads:
        raise InputError(f"threads.source: {task.source} holds no thread; expected at least one")
    return list(threads.values())


def _asks(threads: Sequence[Thread], splits: Sequence[str], task: ThreadsTask, tally: Tally) -> list[_Ask]:
    """Every comment that can become a record, the others counted by reason."""
    asks = []
    start = 0
    for thread, split in zip(threads, splits, strict=True):
        places = {post.id: place for place, post in enumerate(thread.posts)}
        for place, post in enumerate(thread.posts):
            if not post.asks or not post.parents:
                tally.read["posts_without_parent" if post.asks else "posts_not_annotated"] += 1
                continue
            linked = [places[parent] for parent in post.parents]
            parents = tuple(parent for parent in linked if parent < place)
            tally.dropped["link_to_same_or_later_post"] += len(linked) - len(parents)
            low = max(0, place - task.window)
            if not parents:
                tally.dropped["comment_without_earlier_parent"] += 1
            elif not post.text:
                tally.dropped["comment_without_text"] += 1
            elif split == "train" and max(parents) < low:
                tally.dropped["training_parent_outside_window"] += 1
            else:
                asks.append(_Ask(thread, split, start, place, parents, low))
        start += len(thread.posts)
    return asks


def _splits(config: ContextConfig, task: ThreadsTask, threads: Sequence[Thread]) -> list[str]:
    """The split of each thread: what its source says, else what the hash of its id or its time says."""
    if task.split == "time" and (times := {t.id: t.time for t in threads if not t.split}):
        by_time = guards.splits_by_time(times, config.test_share, "threads.split")
        return [t.split or by_time[t.id] for t in threads]
    return [t.split or guards.split_of(config.seed, t.id, config.test_share) for t in threads]


def _content(ask: _Ask) -> bytes:
    parents = (ask.thread.posts[place].text for place in sorted(ask.parents))
    return duplicate_key(ask.comment.text, *parents)


def _said(ask: _Ask) -> str:
    """The comment and what it answers, as one text."""
    parents = (ask.thread.posts[place].text for place in sorted(ask.parents))
    return "\n".join([ask.comment.text, *parents])


@dataclass(frozen=True)
class _Dense:
    """Vectors of the posts that some window holds (`places` maps a flat place to its row) and of the
    comments.
    """

    index: DenseIndex
    places: np.ndarray
    queries: np.ndarray

    @classmethod
    def build(
        cls, posts: Sequence[Post], asks: Sequence[_Ask], embedder: Embedder, progress: Progress
    ) -> _Dense:
        wanted = np.zeros(len(posts), dtype=bool)
        for ask in asks:
            wanted[ask.start + ask.low : ask.start + ask.place] = True
        kept = np.flatnonzero(wanted)
        texts = [prompts.thread_document(posts[i].author, posts[i].text) for i in kept.tolist()]
        both = texts + [ask.comment.text for ask in asks]
        vectors = embedder.encode(both, lambda done, total: progress("threads: embed", done, total))
        # A window is a run of posts that are all wanted, so it is a run of rows too.
        return cls(DenseIndex.build(vectors[: len(texts)]), np.cumsum(wanted) - 1, vectors[len(texts) :])

    def window_scores(self, query: int, low: int, high: int) -> np.ndarray:
        first = int(self.places[low])
        return self.index.window_scores(self.queries[query], first, first + high - low)


def _build(
    ask: _Ask, number: int, task: ThreadsTask, bm25: Ranker, dense: _Dense | None, report: TaskReport
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The record and ranking of one comment, or None where the record would leak its label (counted)."""
    candidates = ask.thread.posts[ask.low : ask.place]
    low, high = ask.start + ask.low, ask.start + ask.place
    gold = np.array([parent - ask.low for parent in ask.parents if parent >= ask.low], dtype=np.int64)
    absent = len(ask.parents) - len(gold)
    # BM25 is ranked always, since it is a baseline of the evaluation; it is fused only if asked for.
    similar = {"bm25": bm25.window_scores(bm25.tokenizer(ask.comment.text), low, high)}
    if dense is not None:
        similar["dense"] = dense.window_scores(number, low, high)
    rankings = _rankings(ask, candidates, similar, task)
    fused = rankings["fused"]
    record = _record(ask, candidates, fused, gold, task)
    if task.format == "4chan" and guards.has_link(record["input"]):
        report.tally.dropped["label_leak"] += 1
        return None
    for leg, ranking in rankings.items():
        report.add_ranking(ask.split, leg, ranking, gold, absent)
    return record, _ranking(ask, candidates, rankings)


def _rankings(
    ask: _Ask, candidates: Sequence[Post], similar: Mapping[str, np.ndarray], task: ThreadsTask
) -> dict[str, np.ndarray]:
    """Every leg's ranking of the candidates, and `fused`; `similar` holds the scores of bm25 and dense."""
    rankings: dict[str, np.ndarray] = {}
    say: dict[str, hybrid.Say] = {}
    for leg, scores in similar.items():
        rankings[leg], positive = hybrid.by_score(scores)
        places = rankings[leg][:positive]
        say[leg] = hybrid.Say(places, scores[places])
    for leg, places in conversation_legs(ask.comment, candidates, ask.low, task.legs).items():
        rankings[leg] = places
        say[leg] = hybrid.Say(places)
    # Always summed in this order: the order of the config's list must not decide a tie by rounding.
    fusing = {leg: say[leg] for leg in LEGS if leg in task.legs}
    rankings["fused"] = hybrid.fuse(fusing, len(candidates), task.fusion, task.rrf_k, task.weights)
    return rankings


def _record(
    ask: _Ask, candidates: Sequence[Post], fused: np.ndarray, gold: np.ndarray, task: ThreadsTask
) -> dict[str, Any]:
    chosen = fused[: task.n_contexts].tolist()
    parents = set(gold.tolist())
    if ask.split == "train" and not parents & set(chosen):
        chosen[-1] = next(place for place in fused.tolist() if place in parents)
    chosen.sort()
    context = [candidates[place] for place in chosen]
    labels = [prompts.post_label(post.author, n) for n, post in enumerate(context, start=1)]
    answers = [labels[chosen.index(place)] for place in gold.tolist() if place in chosen]
    posts = ask.thread.posts
    return {
        "id": ask.name,
        "instruction": prompts.THREADS_INSTRUCTION,
        "input": prompts.threads_input(
            [(p.author, p.text) for p in context], ask.comment.author, ask.comment.text
        ),
        "output": answers[0] if answers else "",
        "task": "threads",
        "split": ask.split,
        "context_id": ask.thread.id,
        "context_ids": [post.id for post in context],
        "oracle_ids": [posts[place].id for place in sorted(ask.parents)],
        "oracle_in_context": bool(answers),
        "gold": answers,
        "choices": labels,
        "source": ask.thread.source,
        "source_row": ask.comment.row,
    }


def _ranking(ask: _Ask, candidates: Sequence[Post], rankings: dict[str, np.ndarray]) -> dict[str, Any]:
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
    for leg in (*LEGS, "fused"):
        ranked = rankings.get(leg)
        row[leg] = [] if ranked is None else [ids[place] for place in ranked[:RANKING_DEPTH].tolist()]
    return row
