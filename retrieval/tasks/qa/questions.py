"""Question records over documents: the right document among retrieved distractors (RAFT, arXiv:2403.10131).

A training prompt holds the right document with probability P, else only distractors. A test prompt holds the
documents that the retriever finds, right or not. Documents of the test split never appear in a training
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.corpus.mapped_items import Items, load_array, save_array
from retrieval.corpus.types import Question
from retrieval.evaluation.build_messages import CUT_BY_EMBEDDER
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.guards.splits import cap, require_training
from retrieval.prompts.answer_styles import AnswerTemplate
from retrieval.prompts.distractors import sharing_groups
from retrieval.prompts.token_budget import token_count
from retrieval.search.bm25.ranker import Ranker
from retrieval.search.dense.embedder import Embedder
from retrieval.search.dense.faiss_index import DenseIndex, kind_for, recall_against_flat
from retrieval.search.fusion import Fusion, fuse
from retrieval.search.legs.leg import LegRanking
from retrieval.search.reranker import Reranker, load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS, choosing_ranking
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa.corpus import (
    HELD_OUT,
    NEAR_TWIN,
    TWIN,
    Corpus,
    document_text,
    read_corpus,
    write_corpus,
)
from retrieval.tasks.qa.record import QaBuilder, RankedQuestion
from retrieval.tasks.task_index import RANKING_DEPTH, index_texts, open_index
from retrieval.tasks.task_protocol import Example

#: How many documents each leg finds. Fusion sees no others, so this bounds recall.
DEPTH = 100
#: Questions that are searched in one call, which costs less than a call each.
SEARCH_BATCH = 256
VECTORS = "vectors.faiss"


@dataclass(frozen=True)
class _Found:
    """The documents that one leg found for one question.

    Attributes:
        places: int64[k], places of documents, the best first.
        scores: float[k], their scores.
    """

    places: np.ndarray
    scores: np.ndarray

    def among(self, which: np.ndarray | slice) -> _Found:
        """Return the documents that `which` selects, in the same order."""
        return _Found(self.places[which], self.scores[which])

    def ranking(self, pool: np.ndarray) -> LegRanking:
        """Return the ranking of the documents, with places in `pool`.

        `pool` has the ascending places of these documents and of others.
        """
        return LegRanking(np.searchsorted(pool, self.places), self.scores)


def prepare(
    config: ContextConfig, embedder: Embedder | None, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Read, split, limit and index the corpus in `folder`. Return the number of questions to build.

    Args:
        config: the configuration, with a `qa` section.
        embedder: model of the dense leg; None if no task uses the leg.
        folder: folder of the prepared files.
        report: counts what was read and dropped.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.qa
    assert task is not None
    AnswerTemplate.of(task, "qa")  # refused before hours of work, not after
    documents, questions = read_corpus(config, task, folder, report, progress)
    # Splits and copies come first: questions that are dropped because of them need no embedding.
    corpus, splits = write_corpus(config, task, folder, documents, questions, progress)
    require_training(splits.values(), "qa", "documents with questions")
    kept = _kept(config, task, corpus, questions, splits, report)
    save_array(folder / "kept.npy", np.array(kept, dtype=np.int64))
    contexts = list(questions.column("context_id"))
    held_out = [splits[contexts[number]] == "test" for number in kept]
    save_array(folder / "held-out.npy", np.array(held_out, dtype=bool))
    index_texts(config, corpus.texts(), len(documents), folder, progress)
    if embedder and "dense" in task.legs:
        # All in memory: the embedder sorts the texts by length.
        texts = [document_text(document) for document in documents]
        vectors = embedder.encode(texts, lambda done, total: progress("qa: embed", done, total))
        queries = embedder.encode(
            [questions.value("text", place) for place in kept],
            lambda done, total: progress("qa: embed questions", done, total),
            "query",
        )
        report.tally.read[CUT_BY_EMBEDDER] += embedder.count_cut(texts)
        index = DenseIndex.build(vectors, kind_for(config.dense_index, len(texts)), config.seed)
        # A flat index is exact, so there is nothing to measure.
        if index.kind != "flat":
            report.index = recall_against_flat(index, vectors, queries)
        index.save(folder / VECTORS)
        # Embedded here, once and in one batch, so that the processes that build shards need no model.
        save_array(folder / "queries.npy", queries)
    return len(kept)


def _kept(
    config: ContextConfig,
    task: QaTask,
    corpus: Corpus,
    questions: Items[Question],
    split_of_context: Mapping[str, str],
    report: TaskReport,
) -> list[int]:
    """Return the places of the questions that become records.

    Duplicates across splits are dropped, and the number of questions is limited.
    """
    contexts = list(questions.column("context_id"))
    dropped = report.tally.dropped
    trained_only = list(questions.column("synthetic")) if not task.may_hold_out_made_questions else []

    def split(number: int) -> str:
        return split_of_context[contexts[number]]

    kept = []
    for number, (context, oracles) in enumerate(zip(contexts, questions.column("oracles"), strict=True)):
        marks = (
            [] if split(number) == "test" else [corpus.barred[corpus.place[o]] for o in oracles or (context,)]
        )
        if trained_only and trained_only[number] and split(number) == "test":
            dropped["synthetic_question_held_out"] += 1
        elif any(mark in (HELD_OUT, TWIN) for mark in marks):
            dropped["document_also_in_test"] += 1
        elif any(mark == NEAR_TWIN for mark in marks):
            dropped["document_nearly_in_test"] += 1
        else:
            kept.append(number)
    return cap(
        kept,
        split=split,
        context=lambda number: contexts[number],
        name=lambda number: questions.value("id", number),
        limits=(task.max_records, task.max_test_records),
        seed=config.seed,
        tally=report.tally,
    )


@dataclass(frozen=True)
class QaWork:
    """The prepared files of the questions, opened to build records."""

    task: QaTask
    builder: QaBuilder
    corpus: Corpus
    questions: Items[Question]
    kept: np.ndarray
    held_out: np.ndarray
    bm25: Ranker
    dense: DenseIndex | None
    queries: np.ndarray | None
    reranker: Reranker | None

    def build(self, low: int, high: int, report: TaskReport) -> Iterator[Example]:
        """Yield (record, ranking) of the questions `low` to `high - 1`, in source order.

        Args:
            low: number of the first question.
            high: number after the last question.
            report: counts records, ranks, and questions that are left out.
        """
        for start in range(low, high, SEARCH_BATCH):
            numbers = range(start, min(start + SEARCH_BATCH, high))
            yield from self._batch(numbers, report)

    def _batch(self, numbers: range, report: TaskReport) -> Iterator[Example]:
        share = self.task.share_contexts
        # A block of questions that share a context is looked at whole even where the shard ends within it, so
        # that a record does not depend on how the work is cut.
        wide = range(numbers.start // share * share, min(-(-numbers.stop // share) * share, len(self.kept)))
        ranked, rankings = self._ranked(wide)
        groups = sharing_groups([one.split for one in ranked], share)
        contexts: dict[int, dict[int, str]] = {}
        for number in numbers:
            at = number - wide.start
            first = groups[at][0]
            if first not in contexts:
                # A group that two shards share is counted once, by the shard that has its first question.
                counted = report if first + wide.start in numbers else TaskReport()
                contexts[first] = self.builder.context([ranked[i] for i in groups[at]], counted)
            one = ranked[at]
            record = self.builder.record(one, contexts[first], ranked[first].question.context_id, report)
            # Ranks are counted for written records only, so that the measures are of the same questions as
            # the scores.
            if record is None:
                continue
            report.add_question(one.split, one.question.context_id, one.question.text)
            terms = self.bm25.tokenizer(one.question.text)
            report.add_terms(terms, self.bm25.known(terms))
            for leg, ranking in rankings[at].items():
                report.add_ranking(one.split, leg, ranking, np.array(one.oracles))
            yield record, _ranking(self.corpus, record, rankings[at])

    def _ranked(self, numbers: range) -> tuple[list[RankedQuestion], list[dict[str, np.ndarray]]]:
        """Yield each question with its ranked documents, and the rankings of all legs."""
        questions = [self.questions[int(self.kept[number])] for number in numbers]
        legs = self._legs(numbers, questions)
        rankings = [_rank(number, legs, self.task) for number in range(len(questions))]
        found = []
        for number, question, by_leg in zip(numbers, questions, rankings, strict=True):
            oracles = tuple(self.corpus.place[name] for name in question.oracle_ids)
            split = "test" if self.held_out[number] else "train"
            if self.reranker is not None:
                by_leg["reranked"] = self.reranker.rerank(
                    question.text, by_leg["fused"], self.corpus.text, self.task.rerank_depth
                )
            # The others are kept for the report.
            best = by_leg[choosing_ranking(by_leg)]
            found.append(RankedQuestion(question, split, oracles, best.tolist()))
        return found, rankings

    def ranked_documents(self, questions: Sequence[Question]) -> list[list[int]]:
        """Return the places of the documents for questions that are not in the corpus, the best first.

        With the dense leg, `queries` holds their vectors, in their order.
        """
        legs = self._legs(range(len(questions)), questions)
        found = []
        for number, question in enumerate(questions):
            ranked = _rank(number, legs, self.task)["fused"]
            if self.reranker is not None:
                ranked = self.reranker.rerank(question.text, ranked, self.corpus.text, self.task.rerank_depth)
            found.append(ranked.tolist())
        return found

    def _legs(self, numbers: range, questions: Sequence[Question]) -> dict[str, list[_Found]]:
        """Return the documents that each leg found for each question.

        The documents existed at the time of the question.
        """
        words = [self.bm25.tokenizer(question.text) for question in questions]
        search = {"bm25": lambda rows, k: list(map(_Found, *self.bm25.search_batch(words[rows], k)))}
        if (dense := self.dense) is not None and self.queries is not None:
            vectors = self.queries[numbers.start : numbers.stop]
            # FAISS fills up with place -1 where an index finds fewer than k.
            search["dense"] = lambda rows, k: [
                _Found(places[places >= 0], scores[places >= 0])
                for places, scores in zip(*dense.search(vectors[rows], k), strict=True)
            ]
        # All questions of the batch in one call for each leg. Only those with a time are searched again,
        # below.
        legs = {leg: find(slice(None), DEPTH) for leg, find in search.items()}
        for row, question in enumerate(questions):
            if question.time is not None:
                for leg, find in search.items():
                    deeper = partial(find, slice(row, row + 1))
                    legs[leg][row] = self._known(legs[leg][row], question.time, deeper)
        return legs

    def _known(self, found: _Found, time: float, deeper: Callable[[int], list[_Found]]) -> _Found:
        """Return the best `DEPTH` documents that existed at a time.

        `deeper` repeats the search with a larger number of documents if it is needed.
        """
        depth = DEPTH
        while True:
            # Written as "not later", because a comparison with NaN (an unknown time) is false.
            known = found.among(~(self.corpus.times[found.places] > time))
            # Enough are known, or a deeper search can find no more.
            if len(known.places) >= DEPTH or len(found.places) < depth or depth >= len(self.corpus.times):
                return known.among(slice(DEPTH))
            # Four times as deep each turn: where most documents are later, few searches reach the end of the
            # corpus.
            depth = min(4 * depth, len(self.corpus.times))
            found = deeper(depth)[0]


def open_work(config: ContextConfig, folder: Path) -> QaWork:
    """Open the files that `prepare` wrote."""
    task = config.qa
    assert task is not None
    corpus = Corpus.open(folder)
    dense = queries = None
    if "dense" in task.legs:
        dense = DenseIndex.load(folder / VECTORS)
        queries = load_array(folder / "queries.npy")
    bm25 = open_index(config, corpus.texts, folder)
    questions = Items(folder / "questions.arrow", Question)
    kept, held_out = (load_array(folder / f"{name}.npy") for name in ("kept", "held-out"))
    builder = QaBuilder(
        task,
        config.seed,
        config.near_duplicates,
        token_count(config),
        lambda place: corpus.documents[place],
        lambda place: bytes(corpus.content[place]),
        lambda place: bool(corpus.barred[place]),
        AnswerTemplate.of(task, "qa"),
    )
    reranker = load_reranker(config.reranker) if config.reranker and task.rerank_depth else None
    return QaWork(task, builder, corpus, questions, kept, held_out, bm25, dense, queries, reranker)


def _rank(number: int, legs: dict[str, list[_Found]], task: QaTask) -> dict[str, np.ndarray]:
    rankings = {leg: found[number].places for leg, found in legs.items()}
    # Fusion works on places 0 to n - 1, so it ranks the union of what the legs found, not the whole corpus.
    pool = np.unique(np.concatenate([rankings[leg] for leg in task.legs]))
    # In the order of the table: see `retrieval.search.fusion`.
    fused = {leg: legs[leg][number].ranking(pool) for leg in LEGS if leg in task.legs}
    rankings["fused"] = pool[fuse(fused, len(pool), Fusion(task.fusion, task.rrf_k, task.weights))]
    return rankings


def _ranking(corpus: Corpus, record: dict[str, Any], rankings: dict[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {key: record[key] for key in ("id", "context_id", "split", "task")}
    # All documents are candidates, so the list is left empty instead of repeating the corpus in each row.
    row |= {"candidate_ids": [], "candidate_authors": [], "opening_id": "", "opening_author": ""}
    row |= {"gold_ids": record["oracle_ids"], "gold_authors": []}
    # What only threads have.
    row |= {"previous_other_author": [], "addressed_then_previous": []}
    row |= {"distance": 0, "thread_messages": 0, "addressed": False}
    for leg in (*LEGS, "fused", "reranked"):
        ranked = rankings.get(leg)
        places = [] if ranked is None else ranked[:RANKING_DEPTH].tolist()
        row[leg] = [corpus.documents.value("id", place) for place in places]
    return row
