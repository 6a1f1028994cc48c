"""Question records over documents: the right document among retrieved distractors (RAFT, arXiv:2403.10131).

Training prompts hold the right document with probability P, else distractors only; test prompts hold what the
retriever finds, right or not. Documents of the test split never appear in a training prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval import guards, hybrid, prompts
from retrieval.bm25 import build_index, top_k
from retrieval.chunking import ask_about_chunks, load_chunker
from retrieval.config import LEGS, ContextConfig, QaTask
from retrieval.corpus import Document, Question
from retrieval.dense import DenseIndex, Embedder
from retrieval.report import Progress, TaskReport
from retrieval.sources import document_files, question_files, tokenizer_folder
from retrieval.tasks.threads import RANKING_DEPTH
from retrieval.text import Tokenizer, duplicate_key, seeded_hash, seeded_share

DEPTH = 100


@dataclass(frozen=True)
class _Corpus:
    """The documents with what building asks of each: split ("" without questions) and content digest."""

    documents: list[Document]
    place: dict[str, int]
    split: list[str]
    content: list[bytes]

    def text(self, place: int) -> str:
        return prompts.titled(self.documents[place].title, self.documents[place].text)


@dataclass(frozen=True)
class _Found:
    """What one leg found for one question: the best `places`, best first, with their `scores`."""

    places: np.ndarray
    scores: np.ndarray

    def say(self, pool: np.ndarray) -> hybrid.Say:
        """What it has to say of a pool (ascending places): only scores above zero count."""
        above = self.scores > 0
        return hybrid.Say(np.searchsorted(pool, self.places[above]), self.scores[above])


def qa_records(
    config: ContextConfig, embedder: Embedder | None, report: TaskReport, progress: Progress
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(record, ranking) of every question, in source order.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    from retrieval.readers.documents import read_documents, read_questions

    task = config.qa
    assert task is not None
    progress("qa: read", 0, 0)
    chunker = None
    if task.chunk_tokens is not None:
        chunker = load_chunker(tokenizer_folder(config), task.chunk_tokens, task.chunk_overlap)
    by_id = read_documents(document_files(task), report.tally, chunker, task.format)
    chunks: dict[str, list[Document]] = {}
    for document in by_id.values():
        chunks.setdefault(document.context_id, []).append(document)
    questions = read_questions(question_files(task), chunks, report.tally, task.format)
    questions = list(ask_about_chunks(questions, chunks, report.tally))
    corpus = _corpus(config, by_id, questions)
    guards.require_training((s for s in corpus.split if s), "qa", "documents with questions")

    def split(question: Question) -> str:
        return corpus.split[corpus.place[question.oracle_ids[0]]]

    def content(question: Question) -> bytes:
        return corpus.content[corpus.place[question.oracle_ids[0]]]

    questions = guards.drop_across_splits(questions, split, content, "document_also_in_test", report.tally)
    questions = guards.cap(
        questions,
        split,
        lambda q: q.context_id,
        lambda q: q.id,
        (task.max_records, task.max_test_records),
        config.seed,
        report.tally,
    )
    legs = _legs(config, task, corpus, questions, embedder, progress)
    for number, question in enumerate(questions):
        if number % 500 == 0:
            progress("qa: records", number, len(questions))
        rankings = _rank(number, legs, task)
        gold = np.array([corpus.place[name] for name in question.oracle_ids])
        for leg, ranking in rankings.items():
            report.add_ranking(split(question), leg, ranking, gold)
        record = _record(config, task, corpus, question, split(question), rankings["fused"])
        yield record, _ranking(corpus, record, rankings)
    progress("qa: records", len(questions), len(questions))


def _corpus(config: ContextConfig, by_id: dict[str, Document], questions: Sequence[Question]) -> _Corpus:
    documents = list(by_id.values())
    asked = {question.context_id for question in questions}
    split = [
        guards.split_of(config.seed, document.context_id, config.test_share)
        if document.context_id in asked
        else ""
        for document in documents
    ]
    content = [duplicate_key(document.title, document.text) for document in documents]
    held_out = {content[i] for i, which in enumerate(split) if which == "test"}
    # A twin of a test document counts as test itself, or its text would reach a training prompt.
    split = ["test" if not s and c in held_out else s for s, c in zip(split, content, strict=True)]
    return _Corpus(documents, {d.id: i for i, d in enumerate(documents)}, split, content)


def _legs(
    config: ContextConfig,
    task: QaTask,
    corpus: _Corpus,
    questions: Sequence[Question],
    embedder: Embedder | None,
    progress: Progress,
) -> dict[str, list[_Found]]:
    """Per leg and question: the best places with their scores."""
    texts = [corpus.text(place) for place in range(len(corpus.documents))]
    progress("qa: index", 0, len(texts))
    tokenizer = Tokenizer(config.bm25_stemmer)
    index = build_index(map(tokenizer, texts), config.bm25_backend, tokenizer)
    legs: dict[str, list[_Found]] = {"bm25": []}
    for question in questions:
        scores = index.scores(index.tokenizer(question.text))
        best = top_k(scores, DEPTH)
        legs["bm25"].append(_Found(best, scores[best]))
    if embedder and "dense" in task.legs:
        both = texts + [question.text for question in questions]
        vectors = embedder.encode(both, lambda done, total: progress("qa: embed", done, total))
        dense = DenseIndex.build(vectors[: len(texts)])
        places, scores = dense.search(vectors[len(texts) :], DEPTH)
        legs["dense"] = [_Found(row, score) for row, score in zip(places, scores, strict=True)]
    return legs


def _rank(number: int, legs: dict[str, list[_Found]], task: QaTask) -> dict[str, np.ndarray]:
    rankings = {leg: found[number].places for leg, found in legs.items()}
    pool = np.unique(np.concatenate([rankings[leg] for leg in task.legs]))
    say = {leg: legs[leg][number].say(pool) for leg in LEGS if leg in task.legs}
    rankings["fused"] = pool[hybrid.fuse(say, len(pool), task.fusion, task.rrf_k, task.weights)]
    return rankings


def _record(
    config: ContextConfig, task: QaTask, corpus: _Corpus, question: Question, split: str, fused: np.ndarray
) -> dict[str, Any]:
    oracles = [corpus.place[name] for name in question.oracle_ids]
    if split == "test":
        chosen = fused[: task.n_contexts].tolist()
    else:
        own = {corpus.content[oracle] for oracle in oracles}
        others = [p for p in fused.tolist() if corpus.content[p] not in own and corpus.split[p] != "test"]
        with_oracle = seeded_share(config.seed, "oracle", question.id) < task.oracle_share
        best = next((p for p in fused.tolist() if p in oracles), oracles[0])
        needed = oracles if question.needs_all else [best]
        chosen = ((needed if with_oracle else []) + others)[: task.n_contexts]
    documents = corpus.documents
    chosen.sort(key=lambda p: seeded_hash(config.seed, "order", question.id, documents[p].id))
    context = [documents[place] for place in chosen]
    return {
        "id": f"qa:{question.id}",
        "instruction": prompts.QA_INSTRUCTION,
        "input": prompts.qa_input([(d.title, d.text) for d in context], question.text),
        "output": question.answers[0],
        "task": "qa",
        "split": split,
        "context_id": question.context_id,
        "context_ids": [document.id for document in context],
        "oracle_ids": list(question.oracle_ids),
        "oracle_in_context": (all if question.needs_all else any)(p in chosen for p in oracles),
        "gold": list(question.answers),
        "choices": [],
        "source": question.source,
        "source_row": question.row,
    }


def _ranking(corpus: _Corpus, record: dict[str, Any], rankings: dict[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {key: record[key] for key in ("id", "context_id", "split", "task")}
    row |= {"candidate_ids": [], "candidate_authors": [], "opening_id": "", "opening_author": ""}
    row |= {"gold_ids": record["oracle_ids"], "gold_authors": []}
    for leg in (*LEGS, "fused"):
        ranked = rankings.get(leg)
        places = [] if ranked is None else ranked[:RANKING_DEPTH].tolist()
        row[leg] = [corpus.documents[place].id for place in places]
    return row
