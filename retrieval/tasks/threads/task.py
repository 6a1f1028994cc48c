"""Reply records: which of the retrieved earlier posts does a comment answer?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.errors import InputError
from retrieval.corpus.mapped_items import Items, ItemSink, write_items
from retrieval.corpus.types import Tally
from retrieval.evaluation.task_report import STARTS, Progress, TaskReport
from retrieval.guards.splits import cap, drop_across_splits, drop_near_duplicates, require_training
from retrieval.prompts import templates
from retrieval.prompts.token_budget import Count, token_count
from retrieval.readers.threads.registry import thread_format
from retrieval.search.bm25.index import BM25Index
from retrieval.search.bm25.ranker import Ranker
from retrieval.search.dense.embedder import Embedder
from retrieval.search.fusion import fuse
from retrieval.search.learned.features import FeatureSpace
from retrieval.search.legs.leg import LegQuery, LegRanking
from retrieval.search.legs.rank_legs import rank_legs
from retrieval.search.reranker import Reranker, load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS, choosing_ranking
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.task_index import RANKING_DEPTH, index_texts, open_index
from retrieval.tasks.task_protocol import Example, Task
from retrieval.tasks.threads.learned_fusion import (
    Cosines,
    FeatureSource,
    FittedMessages,
    LearnedFusion,
    choice_scores,
    choose_messages,
    fit_fusion,
    hand_set_fusion,
    leg_features_of,
    ranked,
)
from retrieval.tasks.threads.link_rules import RuleAnswers
from retrieval.tasks.threads.links import Predicted, linked_threads, write_links
from retrieval.tasks.threads.record import ThreadRecordBuilder
from retrieval.tasks.threads.store import Reply, ReplyRow, ThreadStore, store_threads
from retrieval.tasks.threads.vectors import ThreadVectors
from retrieval.tasks.threads.window import window_start
from retrieval.text.left_out import counted_reasons
from retrieval.text.normalize import duplicate_key


def prepare(
    config: ContextConfig, embedder: Embedder | None, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Read, split, limit and index the corpus in `folder`. Return the number of replies to build.

    Args:
        config: the configuration, with a `threads` section.
        embedder: model of the dense leg; None if no task uses the leg.
        folder: folder of the prepared files.
        report: counts what was read and dropped.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.threads
    assert task is not None
    # From here on `format` is never "auto": the leak checks depend on it.
    task = task.model_copy(update={"format": thread_format(task)})
    threads = store_threads(config, task, folder, report.tally, progress)
    shorter = ", cut long conversations by threads.block"
    require_training(threads.rows.column("split"), "threads", "threads", shorter)
    content: list[bytes] = []
    with ItemSink(folder / "all-replies.arrow", ReplyRow) as sink:
        for row in _stored_replies(threads, task, report.tally):
            sink.add(row)
            # 16 bytes for each reply instead of its text.
            content.append(_content(threads.reply(row)))
    replies = Items(folder / "all-replies.arrow", ReplyRow)
    kept, left_out = _kept(config, task, threads, replies, content, report.tally)
    if not kept:
        why = counted_reasons(+report.tally.dropped)
        raise InputError(
            "threads: no post replies to an earlier post; expected posts that name what they answer"
            + (f" (left out: {why})" if why else "")
        )
    replies = write_items(folder / "replies.arrow", ReplyRow, (replies[number] for number in kept))
    (folder / "all-replies.arrow").unlink()
    index_texts(config, threads.texts(), len(threads.posts), folder, progress)
    fitted, predicted = None, None
    if task.learns_fusion:
        fitted = choose_messages(threads, task, config.seed, left_out, report.tally)
    if embedder and "dense" in task.legs:
        messages = np.stack([replies.numbers(name) for name in ("thread", "place", "low")], axis=1)
        if fitted is not None:
            messages = np.concatenate([messages, [(row.thread, row.place, row.low) for row in fitted.rows]])
        ThreadVectors.build(threads, messages, embedder, progress, folder)
    if fitted is not None:
        report.learned_fusion, predicted = _fit(config, threads, fitted, len(replies), folder, progress)
    write_links(threads, linked_threads(threads, task.window, config.seed), predicted, folder)
    return len(kept)


def _fit(
    config: ContextConfig,
    threads: ThreadStore,
    fitted: FittedMessages,
    n_replies: int,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], Predicted]:
    """Fit the learned fusion, write it, and return its measures and links of held-out threads.

    `n_replies` comments have vectors before.
    """
    task = config.threads
    assert task is not None
    cosines: Cosines | None = None
    if "dense" in task.legs:
        dense = ThreadVectors.open(folder)

        def of_message(number: int, low: int, high: int) -> np.ndarray:
            return dense.window_scores(n_replies + number, low, high)

        cosines = of_message

    source = FeatureSource(threads, _index(config, threads, folder), FeatureSpace(leg_features_of(task), ()))
    return fit_fusion(source, fitted, cosines, config.seed, folder, progress)


def _kept(
    config: ContextConfig,
    task: ThreadsTask,
    threads: ThreadStore,
    replies: Items[ReplyRow],
    content: Sequence[bytes],
    tally: Tally,
) -> tuple[list[int], frozenset[tuple[int, int]]]:
    """Return the numbers of the replies that become records, and (thread, place) of the duplicates.

    Duplicates across splits are dropped, and the number of replies is limited.
    """
    of = replies.numbers("thread").tolist()
    splits, ids = list(threads.rows.column("split")), list(threads.rows.column("id"))

    def split(number: int) -> str:
        return splits[of[number]]

    kept = drop_across_splits(
        range(len(replies)), split, lambda number: content[number], "duplicate_of_test_record", tally
    )
    kept = drop_near_duplicates(
        kept,
        split,
        # With what it answers: short comments ("thanks!") are alike everywhere without being copies.
        lambda number: _with_parents(threads.reply(replies[number])),
        config.near_duplicates,
        "near_duplicate_of_test_record",
        tally,
    )
    duplicates = np.setdiff1d(np.arange(len(replies)), kept)
    places = replies.numbers("place")
    left_out = frozenset((of[number], int(places[number])) for number in duplicates.tolist())
    kept = cap(
        kept,
        split=split,
        context=lambda number: ids[of[number]],
        name=lambda number: threads.reply(replies[number]).name,
        limits=(task.max_records, task.max_test_records),
        seed=config.seed,
        tally=tally,
    )
    return kept, left_out


def _index(config: ContextConfig, threads: ThreadStore, folder: Path) -> BM25Index:
    """Return the saved index, which the learned fusion reads words from."""
    index = open_index(config, threads.texts, folder)
    # The settings refuse the other backend, which has no document frequencies to read.
    assert isinstance(index, BM25Index)
    return index


@dataclass(frozen=True)
class ThreadsWork:
    """The prepared files of the replies, opened to build records."""

    task: ThreadsTask
    seed: int
    count: Count
    threads: ThreadStore
    replies: Items[ReplyRow]
    bm25: Ranker
    dense: ThreadVectors | None
    reranker: Reranker | None
    learned: LearnedFusion | None = None
    # Of the last thread, because the comments of a thread follow one another.
    _rules: dict[int, RuleAnswers] = field(default_factory=dict, init=False)

    def rules(self, number: int) -> RuleAnswers:
        """Return what the rules answer in a thread, given by its number."""
        if number not in self._rules:
            self._rules.clear()
            self._rules[number] = RuleAnswers.of(self.threads.thread(number).posts)
        return self._rules[number]

    def build(self, low: int, high: int, report: TaskReport) -> Iterator[Example]:
        """Yield (record, ranking) of the replies `low` to `high - 1`, in source order.

        Args:
            low: number of the first reply.
            high: number after the last reply.
            report: counts records, ranks, and replies that are left out because they leak.
        """
        for number, row in zip(range(low, high), self.replies.run(low, high), strict=True):
            built = _build(self, number, row, report)
            if built is not None:
                yield built


def open_work(config: ContextConfig, folder: Path) -> ThreadsWork:
    """Open the files that `prepare` wrote."""
    task = config.threads
    assert task is not None
    task = task.model_copy(update={"format": thread_format(task)})
    threads = ThreadStore(folder)
    bm25 = open_index(config, threads.texts, folder)
    dense = ThreadVectors.open(folder) if "dense" in task.legs else None
    replies = Items(folder / "replies.arrow", ReplyRow)
    reranker = load_reranker(config.reranker) if config.reranker and task.rerank_depth else None
    learned = (
        LearnedFusion.open(threads, _index(config, threads, folder), folder) if task.learns_fusion else None
    )
    count = token_count(config)
    return ThreadsWork(task, config.seed, count, threads, replies, bm25, dense, reranker, learned)


def _stored_replies(threads: ThreadStore, task: ThreadsTask, tally: Tally) -> Iterator[ReplyRow]:
    """Yield every comment that can become a record. The others are counted by reason."""
    for number in range(len(threads.rows)):
        thread = threads.thread(number)
        split = thread.split
        places = {post.id: place for place, post in enumerate(thread.posts)}
        for place, post in enumerate(thread.posts):
            if task.starts and place and post.has_known_parents and not post.parents and post.text:
                yield ReplyRow(number, place, (), max(0, place - task.window))
                continue
            if not post.has_known_parents or not post.parents:
                tally.read["posts_without_parent" if post.has_known_parents else "posts_not_annotated"] += 1
                continue
            linked = [places[parent] for parent in post.parents]
            # Clocks and exports are wrong now and then; a post cannot answer itself or a later one.
            parents = tuple(parent for parent in linked if parent < place)
            tally.dropped["link_to_same_or_later_post"] += len(linked) - len(parents)
            if not parents:
                tally.dropped["comment_without_earlier_parent"] += 1
            elif not post.text:
                tally.dropped["comment_without_text"] += 1
            # In the test split it stays, and counts as a miss of the retriever.
            elif split == "train" and _unteachable(place, parents, task):
                tally.dropped["training_parent_outside_window"] += 1
            else:
                yield ReplyRow(number, place, parents, max(0, place - task.window))


def _unteachable(place: int, parents: Sequence[int], task: ThreadsTask) -> bool:
    """Return whether a training prompt cannot hold any of the parents.

    In windows, `abstain` teaches such replies too.
    """
    if task.contexts == "window":
        return not task.abstain and max(parents) < window_start(place, task.n_contexts)
    return max(parents) < place - task.window


def _content(reply: Reply) -> bytes:
    return duplicate_key(reply.comment.text, *(post.text for post in reply.parent_posts))


def _with_parents(reply: Reply) -> str:
    """Return the text of the comment and of the posts that it answers."""
    return "\n".join([reply.comment.text, *(post.text for post in reply.parent_posts)])


def _build(work: ThreadsWork, number: int, row: ReplyRow, report: TaskReport) -> Example | None:
    """Return the record and ranking of one reply.

    A record that would reveal its answer is dropped and counted. Then the result is None.
    """
    task, reply = work.task, work.threads.reply(row)
    low, high = reply.start + reply.low, reply.start + reply.place
    gold = np.array(reply.gold, dtype=np.int64)
    # Parents before the window count as not found, so that a short window does not look like a good
    # retriever.
    outside_window = len(reply.parents) - len(gold)
    scores = {"bm25": work.bm25.window_scores(work.bm25.tokenizer(reply.comment.text), low, high)}
    if work.dense is not None:
        scores["dense"] = work.dense.window_scores(number, low, high)
    # BM25 always ranks, because it is a baseline of the evaluation; it is fused only if the task has the leg.
    legs = rank_legs({*task.legs, "bm25"}, LegQuery(reply.comment, reply.candidates, reply.low, scores))
    rankings = _rankings(legs, len(reply.candidates), task)
    log_p = None if work.learned is None else work.learned.log_probabilities(row, legs)
    if log_p is not None:
        rankings["learned"] = ranked(log_p)
    if work.reranker is not None:
        candidates = reply.candidates
        rankings["reranked"] = work.reranker.rerank(
            reply.comment.text,
            _best(rankings),
            lambda place: templates.thread_document(candidates[place].author, candidates[place].text),
            task.rerank_depth,
        )
    builder = ThreadRecordBuilder(task, work.seed, work.count)
    record = builder.record(reply, _wanted(reply, rankings, task), report)
    if record is None:
        return None
    if reply.parents:
        distance = reply.place - max(reply.parents)
        # Only for written records, as the rankings below: measures and scores are of the same comments.
        report.add_question(reply.split, reply.thread.id, reply.comment.text, distance)
        for leg, ranking in rankings.items():
            report.add_ranking(reply.split, leg, ranking, gold, outside_window)
    else:
        report.note(reply.split, STARTS)
    found = _ranking(reply, rankings, work.rules(row.thread))
    if log_p is not None:
        record["choice_scores"] = choice_scores(record, [post.id for post in reply.candidates], log_p)
        found["learned_scores"] = [*log_p[1:].tolist(), float(log_p[0])]
    return record, found


def _best(rankings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the ranking that chooses the posts of a prompt."""
    return rankings[choosing_ranking(rankings)]


def _wanted(reply: Reply, rankings: Mapping[str, np.ndarray], task: ThreadsTask) -> list[int]:
    """Return the places of the candidates that the prompt may hold, highest priority first.

    These are all candidates in ranking order or, with `contexts: window`, the posts of the window, newest
    first.
    """
    if task.contexts == "window":
        start = window_start(reply.place, task.n_contexts)
        return [place - reply.low for place in reversed(range(start, reply.place))]
    return _best(rankings).tolist()


def _rankings(legs: Mapping[str, LegRanking], n: int, task: ThreadsTask) -> dict[str, np.ndarray]:
    """Return every leg's ranking of `n` candidates, and `fused`."""
    fused = {leg: ranking for leg, ranking in legs.items() if leg in task.legs}
    rankings = {leg: ranking.places for leg, ranking in legs.items()}
    rankings["fused"] = fuse(fused, n, hand_set_fusion(task))
    return rankings


def _ranking(reply: Reply, rankings: Mapping[str, np.ndarray], rules: RuleAnswers) -> dict[str, Any]:
    """Return the row of `rankings.parquet` of a reply.

    Args:
        reply: the reply.
        rankings: places of the candidates by ranking, best first.
        rules: what the rules answer in its thread.
    """
    posts, candidates = reply.thread.posts, reply.candidates
    ids = [post.id for post in candidates]
    row: dict[str, Any] = {
        "id": reply.name,
        "context_id": reply.thread.id,
        "split": reply.split,
        "task": "threads",
        "candidate_ids": ids,
        "candidate_authors": [post.author for post in candidates],
        "opening_id": posts[0].id,
        "opening_author": posts[0].author,
        "gold_ids": [posts[place].id for place in reply.parents],
        "gold_authors": [posts[place].author for place in reply.parents],
        "distance": reply.place - max(reply.parents) if reply.parents else 0,
        "thread_messages": len(posts),
        "addressed": rules.addressed[reply.place] is not None,
    }
    for name in ("previous_other_author", "addressed_then_previous"):
        place = getattr(rules, name)[reply.place]
        # A start, and a post before the window, are no answers of this question.
        row[name] = [posts[place].id if reply.low <= place < reply.place else ids[-1]]
    for leg in (*LEGS, "fused", "reranked", "learned"):
        found = rankings.get(leg)
        row[leg] = [] if found is None else [ids[place] for place in found[:RANKING_DEPTH].tolist()]
    return row


def _needs_embedder(config: ContextConfig) -> bool:
    return config.threads is not None and "dense" in config.threads.legs


TASK = Task(prepare, open_work, _needs_embedder)
