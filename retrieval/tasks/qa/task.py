"""Question records over documents: the right document among retrieved distractors (RAFT, arXiv:2403.10131).

Training prompts hold the right document with probability P, else distractors only; test prompts hold what the
retriever finds, right or not. Documents of the test split never appear in a training prompt.
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
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.guards.splits import cap, require_training
from retrieval.prompts.answer_styles import AnswerTemplate
from retrieval.prompts.distractors import sharing_groups
from retrieval.prompts.token_budget import token_count
from retrieval.readers.documents.instructions import is_alpaca
from retrieval.search.bm25.index import Ranker
from retrieval.search.dense.embedder import Embedder
from retrieval.search.dense.faiss_index import DenseIndex, kind_for, recall_against_flat
from retrieval.search.fusion import Fusion, fuse
from retrieval.search.legs.leg import LegRanking
from retrieval.search.reranker import Reranker, load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa import instructions
from retrieval.tasks.qa.corpus import (
    HELD_OUT,
    NEAR_TWIN,
    TWIN,
    Corpus,
    document_text,
    read_corpus,
    write_corpus,
)
from retrieval.tasks.qa.record import AskedQuestion, QaBuilder
from retrieval.tasks.task_index import index_texts, open_index
from retrieval.tasks.threads.task import RANKING_DEPTH

DEPTH = 100
#: Questions that are searched at once.
SEARCH_BATCH = 256
VECTORS = "vectors.faiss"


@dataclass(frozen=True)
class _Found:
    """What one leg found for one question: the best `places`, best first, with their `scores`."""

    places: np.ndarray
    scores: np.ndarray

    def among(self, which: np.ndarray | slice) -> _Found:
        """Some of it, in the same order."""
        return _Found(self.places[which], self.scores[which])

    def ranking(self, pool: np.ndarray) -> LegRanking:
        """The ranking of a pool (ascending places, of which these are some), by places in the pool."""
        return LegRanking(np.searchsorted(pool, self.places), self.scores)


def prepare(
    config: ContextConfig, embedder: Embedder | None, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Reads, splits, thins and indexes the corpus into `folder`; returns the number of questions to build.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.qa
    assert task is not None
    if is_alpaca(task):
        return instructions.prepare(config, folder, report, progress)
    AnswerTemplate.of(task, "qa")  # refused before hours of work, not after
    documents, questions = read_corpus(config, task, folder, report, progress)
    corpus, splits = write_corpus(config, task, folder, documents, questions, progress)
    require_training(splits.values(), "qa", "documents with questions")
    kept = _kept(config, task, corpus, questions, splits, report)
    save_array(folder / "kept.npy", np.array(kept, dtype=np.int64))
    contexts = list(questions.column("context_id"))
    held_out = [splits[contexts[number]] == "test" for number in kept]
    save_array(folder / "held-out.npy", np.array(held_out, dtype=bool))
    index_texts(config, corpus.texts(), len(documents), folder, progress)
    if embedder and "dense" in task.legs:
        texts = [document_text(document) for document in documents]
        vectors = embedder.encode(texts, lambda done, total: progress("qa: embed", done, total))
        queries = embedder.encode(
            [questions.value("text", place) for place in kept],
            lambda done, total: progress("qa: embed questions", done, total),
            "query",
        )
        index = DenseIndex.build(vectors, kind_for(config.dense_index, len(texts)), config.seed)
        if index.kind != "flat":
            report.index = recall_against_flat(index, vectors, queries)
        index.save(folder / VECTORS)
        save_array(folder / "queries.npy", queries)
    return len(kept)


def _kept(
    config: ContextConfig,
    task: QaTask,
    corpus: Corpus,
    questions: Items[Question],
    asked: Mapping[str, str],
    report: TaskReport,
) -> list[int]:
    """Places of the questions that become records: no duplicates across splits, no more than asked for."""
    contexts = list(questions.column("context_id"))
    dropped = report.tally.dropped

    def split(number: int) -> str:
        return asked[contexts[number]]

    kept = []
    for number, (context, oracles) in enumerate(zip(contexts, questions.column("oracles"), strict=True)):
        marks = (
            [] if split(number) == "test" else [corpus.barred[corpus.place[o]] for o in oracles or (context,)]
        )
        if any(mark in (HELD_OUT, TWIN) for mark in marks):
            dropped["document_also_in_test"] += 1
        elif any(mark == NEAR_TWIN for mark in marks):
            dropped["document_nearly_in_test"] += 1
        else:
            kept.append(number)
    return cap(
        kept,
        split,
        lambda number: contexts[number],
        lambda number: questions.value("id", number),
        (task.max_records, task.max_test_records),
        config.seed,
        report.tally,
    )


@dataclass(frozen=True)
class QaWork:
    """What `prepare` wrote, opened to build records from."""

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

    def build(
        self, low: int, high: int, report: TaskReport
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(record, ranking) of the kept questions low to high - 1, in source order."""
        for start in range(low, high, SEARCH_BATCH):
            numbers = range(start, min(start + SEARCH_BATCH, high))
            yield from self._batch(numbers, report)

    def _batch(self, numbers: range, report: TaskReport) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        share = self.task.share_contexts
        # Whole blocks of questions that share, so that a record does not depend on how the work is cut.
        wide = range(numbers.start // share * share, min(-(-numbers.stop // share) * share, len(self.kept)))
        asked, rankings = self._asked(wide)
        groups = sharing_groups([one.split for one in asked], share)
        contexts: dict[int, dict[int, str]] = {}
        for number in numbers:
            at = number - wide.start
            first = groups[at][0]
            if first not in contexts:
                # Counted once, by whoever builds the first question of the group.
                counted = report if first + wide.start in numbers else TaskReport()
                contexts[first] = self.builder.context([asked[i] for i in groups[at]], counted)
            one = asked[at]
            record = self.builder.record(one, contexts[first], asked[first].question.context_id, report)
            if record is None:
                continue
            report.add_question(one.split, one.question.context_id, one.question.text)
            for leg, ranking in rankings[at].items():
                report.add_ranking(one.split, leg, ranking, np.array(one.oracles))
            yield record, _ranking(self.corpus, record, rankings[at])

    def _asked(self, numbers: range) -> tuple[list[AskedQuestion], list[dict[str, np.ndarray]]]:
        """The questions with what was found for them, and every leg's ranking of each."""
        questions = [self.questions[int(self.kept[number])] for number in numbers]
        legs = self._legs(numbers, questions)
        rankings = [_rank(number, legs, self.task) for number in range(len(questions))]
        asked = []
        for number, question, ranked in zip(numbers, questions, rankings, strict=True):
            oracles = tuple(self.corpus.place[name] for name in question.oracle_ids)
            split = "test" if self.held_out[number] else "train"
            if self.reranker is not None:
                ranked["reranked"] = self.reranker.rerank(
                    question.text, ranked["fused"], self.corpus.text, self.task.rerank_depth
                )
            best = ranked.get("reranked", ranked["fused"])
            asked.append(AskedQuestion(question, split, oracles, best.tolist()))
        return asked, rankings

    def _legs(self, numbers: range, questions: Sequence[Question]) -> dict[str, list[_Found]]:
        """Per leg and question: the best places with their scores, of what existed when it was asked."""
        words = [self.bm25.tokenizer(question.text) for question in questions]
        search = {"bm25": lambda rows, k: list(map(_Found, *self.bm25.search_batch(words[rows], k)))}
        if (dense := self.dense) is not None and self.queries is not None:
            vectors = self.queries[numbers.start : numbers.stop]
            search["dense"] = lambda rows, k: [
                _Found(places[places >= 0], scores[places >= 0])
                for places, scores in zip(*dense.search(vectors[rows], k), strict=True)
            ]
        legs = {leg: find(slice(None), DEPTH) for leg, find in search.items()}
        for row, question in enumerate(questions):
            if question.time is not None:
                for leg, find in search.items():
                    deeper = partial(find, slice(row, row + 1))
                    legs[leg][row] = self._known(legs[leg][row], question.time, deeper)
        return legs

    def _known(self, found: _Found, asked: float, deeper: Callable[[int], list[_Found]]) -> _Found:
        """The first `DEPTH` of what was found that existed at `asked`, searched as deep as that needs."""
        depth = DEPTH
        while True:
            known = found.among(~(self.corpus.times[found.places] > asked))
            if len(known.places) >= DEPTH or len(found.places) < depth or depth >= len(self.corpus.times):
                return known.among(slice(DEPTH))
            depth = min(4 * depth, len(self.corpus.times))
            found = deeper(depth)[0]


def open_work(config: ContextConfig, folder: Path) -> QaWork | instructions.AlpacaWork:
    """Opens what `prepare` wrote."""
    if (folder / instructions.TRIPLES).is_file():
        return instructions.open_work(folder)
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
    pool = np.unique(np.concatenate([rankings[leg] for leg in task.legs]))
    # In the order of the table: see `retrieval.search.fusion`.
    fused = {leg: legs[leg][number].ranking(pool) for leg in LEGS if leg in task.legs}
    rankings["fused"] = pool[fuse(fused, len(pool), Fusion(task.fusion, task.rrf_k, task.weights))]
    return rankings


def _ranking(corpus: Corpus, record: dict[str, Any], rankings: dict[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {key: record[key] for key in ("id", "context_id", "split", "task")}
    row |= {"candidate_ids": [], "candidate_authors": [], "opening_id": "", "opening_author": ""}
    row |= {"gold_ids": record["oracle_ids"], "gold_authors": []}
    for leg in (*LEGS, "fused", "reranked"):
        ranked = rankings.get(leg)
        places = [] if ranked is None else ranked[:RANKING_DEPTH].tolist()
        row[leg] = [corpus.documents.value("id", place) for place in places]
    return row
