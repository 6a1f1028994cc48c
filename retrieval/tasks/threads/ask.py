"""Prompts of new posts: which earlier post of its thread does a post answer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jora_core.base.errors import InputError
from jora_core.base.record_columns import ANSWERING_CHANNEL_COLUMNS
from retrieval.corpus.types import Post
from retrieval.evaluation.task_report import TaskReport
from retrieval.prompts import templates
from retrieval.prompts.token_budget import token_count
from retrieval.readers.threads.registry import thread_format
from retrieval.search.bm25.index import BM25Index
from retrieval.search.dense.embedder import Embedder
from retrieval.search.dense.faiss_index import cosines
from retrieval.search.fusion import fuse
from retrieval.search.legs.leg import LegQuery
from retrieval.search.legs.rank_legs import rank_legs
from retrieval.search.reranker import load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.asking import Asked, Inquiry, ShownText, asked_record, nearest_ids
from retrieval.tasks.task_index import open_index
from retrieval.tasks.threads.learned_fusion import LearnedFusion, hand_set_fusion, ranked
from retrieval.tasks.threads.record import ThreadRecordBuilder
from retrieval.tasks.threads.store import Reply, ThreadStore
from retrieval.tasks.threads.window import window_start

_NEW = "new post"


def ask(
    config: ContextConfig, folder: Path, inquiries: Sequence[Inquiry], embedder: Embedder | None
) -> list[Asked]:
    """Return the prompts of new posts, each at the end of its thread.

    Args:
        config: the configuration of the task.
        folder: the task's prepared folder.
        inquiries: the posts; `context` is the id of the thread.
        embedder: model of the dense leg; None without that leg.

    Raises:
        InputError: no thread with the given id, or a post that reveals its answer.
    """
    task = config.threads
    assert task is not None
    task = task.model_copy(update={"format": thread_format(task)})
    threads = ThreadStore(folder)
    numbers = {name: number for number, name in enumerate(threads.rows.column("id"))}
    builder = ThreadRecordBuilder(task, config.seed, token_count(config))
    retriever = _Retriever(config, task, threads, folder, embedder)
    found = []
    for inquiry in inquiries:
        if inquiry.context not in numbers:
            given = (
                f"--thread {inquiry.context}: no such thread" if inquiry.context else "--thread is missing"
            )
            raise InputError(
                f"{given}; a post is asked with the id of its thread{nearest_ids(inquiry.context, numbers)}"
            )
        number = numbers[inquiry.context]
        thread = threads.thread(number)
        place = len(thread.posts)
        post = Post(_NEW, inquiry.author, " ".join(inquiry.text.split()))
        low = max(0, place - task.window)
        whole = replace(thread, posts=(*thread.posts, post))
        reply = Reply(whole, "test", threads.rows.value("start", number), place, (), low)
        by_rank = retriever.rank(reply)
        wanted = by_rank
        if task.contexts == "window":
            start = window_start(place, task.n_contexts)
            wanted = [earlier - low for earlier in reversed(range(start, place))]
        record = builder.record(reply, wanted, TaskReport())
        if record is None:
            raise InputError("the post's text names its answer (a quotelink or a label); leave that out")
        posts = {candidate.id: candidate for candidate in reply.candidates}
        ranks = {reply.candidates[at].id: rank for rank, at in enumerate(by_rank, 1)}
        texts = tuple(
            ShownText(name, templates.post_label(posts[name].author, number), posts[name].text, ranks[name])
            for number, name in enumerate(record["context_ids"], 1)
        )
        kept = ("instruction", "input", "context_id", "context_ids", "choices")
        kept += ANSWERING_CHANNEL_COLUMNS if task.direction == "channel" else ()
        found.append(Asked(asked_record("threads", inquiry, **{k: record[k] for k in kept}), texts))
    return found


class _Retriever:
    """Ranks the candidates of a post that is not in the corpus, as those of the records are ranked."""

    def __init__(
        self,
        config: ContextConfig,
        task: ThreadsTask,
        threads: ThreadStore,
        folder: Path,
        embedder: Embedder | None,
    ) -> None:
        self._task = task
        self._bm25 = open_index(config, threads.texts, folder)
        self._embedder = embedder if "dense" in task.legs else None
        self._reranker = load_reranker(config.reranker) if config.reranker and task.rerank_depth else None
        self._learned = None
        if task.learns_fusion:
            # The settings refuse the other backend, which has no document frequencies to read.
            assert isinstance(self._bm25, BM25Index)
            self._learned = LearnedFusion.open(threads, self._bm25, folder)

    def rank(self, reply: Reply) -> list[int]:
        """Return the places of all candidates, the best first."""
        task, candidates, text = self._task, reply.candidates, reply.comment.text
        low, high = reply.start + reply.low, reply.start + reply.place
        scores = {"bm25": self._bm25.window_scores(self._bm25.tokenizer(text), low, high)}
        documents = [templates.thread_document(post.author, post.text) for post in candidates]
        if self._embedder is not None:
            # Of the corpus, only candidates of its own comments have vectors; the others come from the cache
            # of embeddings, or are embedded now.
            vectors = self._embedder.encode(documents)
            query = self._embedder.encode([text], role="query")[0]
            scores["dense"] = cosines(vectors, query)
        # As for records: BM25 is always a feature of the learned fusion, and is fused only if it is a leg.
        legs = rank_legs({*task.legs, "bm25"}, LegQuery(reply.comment, candidates, reply.low, scores))
        if self._learned is not None:
            places = ranked(self._learned.log_probabilities_of_new(reply.thread.posts, reply.low, legs))
        else:
            own = {leg: ranking for leg, ranking in legs.items() if leg in task.legs}
            places = fuse(own, len(candidates), hand_set_fusion(task))
        if self._reranker is not None:
            places = self._reranker.rerank(text, places, documents.__getitem__, task.rerank_depth)
        return np.asarray(places).tolist()
