"""Question records over documents: the right document among retrieved distractors (RAFT, arXiv:2403.10131).

Training prompts hold the right document with probability P, else distractors only; test prompts hold what the
retriever finds, right or not. Documents of the test split never appear in a training prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import guards, hybrid, prompts
from retrieval.bm25 import Ranker
from retrieval.chunking import ask_about_chunks, load_chunker
from retrieval.columns import IdIndex, Items, load_array, save_array, write_items
from retrieval.config import LEGS, ContextConfig, QaTask
from retrieval.corpus import Document, Question
from retrieval.dense import Embedder
from retrieval.report import Progress, TaskReport
from retrieval.sources import document_files, question_files, tokenizer_folder
from retrieval.tasks.index import index_texts, open_index
from retrieval.tasks.threads import RANKING_DEPTH
from retrieval.text import duplicate_key, seeded_hash, seeded_share
from retrieval.vectors import DenseIndex, kind_for, recall_against_flat

DEPTH = 100
#: Questions that are searched at once.
SEARCH_BATCH = 256
#: Content digests as raw bytes; "S16" would drop zeros at the end.
CONTENT = np.dtype("V16")
VECTORS = "vectors.faiss"


@dataclass(frozen=True)
class _Corpus:
    """The documents with what building asks of each: split ("" without questions) and content digest."""

    documents: Items[Document]
    place: IdIndex
    split: np.ndarray
    content: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> _Corpus:
        """The corpus that `prepare` wrote."""
        documents = Items(folder / "documents.arrow", Document)
        arrays = [load_array(folder / f"{name}.npy") for name in ("split", "content")]
        return cls(documents, IdIndex(folder, documents), *arrays)

    def text(self, place: int) -> str:
        return _text(self.documents[place])

    def texts(self) -> Iterator[str]:
        return map(_text, self.documents)


@dataclass(frozen=True)
class _Found:
    """What one leg found for one question: the best `places`, best first, with their `scores`."""

    places: np.ndarray
    scores: np.ndarray

    def say(self, pool: np.ndarray) -> hybrid.Say:
        """What it has to say of a pool (ascending places): only scores above zero count."""
        above = self.scores > 0
        return hybrid.Say(np.searchsorted(pool, self.places[above]), self.scores[above])


def _text(document: Document) -> str:
    return prompts.titled(document.title, document.text)


def prepare(
    config: ContextConfig, embedder: Embedder | None, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Reads, splits, thins and indexes the corpus into `folder`; returns the number of questions to build.

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
    read = read_questions(question_files(task), chunks, report.tally, task.format)
    asked = ask_about_chunks(read, chunks, report.tally)
    documents = write_items(folder / "documents.arrow", Document, by_id.values())
    questions = write_items(folder / "questions.arrow", Question, asked)
    corpus = _corpus(config, folder, documents, questions)
    guards.require_training((s for s in corpus.split.tolist() if s), "qa", "documents with questions")
    kept = _kept(config, task, corpus, questions, report)
    save_array(folder / "kept.npy", np.array(kept, dtype=np.int64))
    index_texts(config, corpus.texts(), len(documents), folder, progress)
    if embedder and "dense" in task.legs:
        texts = [_text(document) for document in documents]
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


def _corpus(
    config: ContextConfig, folder: Path, documents: Items[Document], questions: Items[Question]
) -> _Corpus:
    IdIndex.build(folder, documents)
    asked = set(questions.column("context_id"))
    split = np.zeros(len(documents), dtype="U5")
    content = np.zeros(len(documents), dtype=CONTENT)
    for place, document in enumerate(documents):
        if document.context_id in asked:
            split[place] = guards.split_of(config.seed, document.context_id, config.test_share)
        content[place] = np.void(duplicate_key(document.title, document.text))
    # A twin of a test document counts as test itself, or its text would reach a training prompt.
    split[(split == "") & np.isin(content, content[split == "test"])] = "test"
    save_array(folder / "split.npy", split)
    save_array(folder / "content.npy", content)
    return _Corpus.open(folder)


def _kept(
    config: ContextConfig, task: QaTask, corpus: _Corpus, questions: Items[Question], report: TaskReport
) -> list[int]:
    """Places of the questions that become records: no duplicates across splits, no more than asked for."""
    contexts = list(questions.column("context_id"))
    first = zip(questions.column("oracles"), contexts, strict=True)
    oracle = [corpus.place[oracles[0] if oracles else context] for oracles, context in first]

    def split(number: int) -> str:
        return str(corpus.split[oracle[number]])

    def content(number: int) -> bytes:
        return bytes(corpus.content[oracle[number]])

    numbers = range(len(questions))
    kept = guards.drop_across_splits(numbers, split, content, "document_also_in_test", report.tally)
    return guards.cap(
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

    config: ContextConfig
    corpus: _Corpus
    questions: Items[Question]
    kept: np.ndarray
    bm25: Ranker
    dense: DenseIndex | None
    queries: np.ndarray | None

    def build(
        self, low: int, high: int, report: TaskReport
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(record, ranking) of the kept questions low to high - 1, in source order."""
        for start in range(low, high, SEARCH_BATCH):
            numbers = range(start, min(start + SEARCH_BATCH, high))
            yield from self._batch(numbers, report)

    def _batch(self, numbers: range, report: TaskReport) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        task, corpus = self.config.qa, self.corpus
        assert task is not None
        questions = [self.questions[int(self.kept[number])] for number in numbers]
        legs = self._legs(numbers, questions)
        for number, question in enumerate(questions):
            gold = np.array([corpus.place[name] for name in question.oracle_ids])
            split = str(corpus.split[gold[0]])
            rankings = _rank(number, legs, task)
            for leg, ranking in rankings.items():
                report.add_ranking(split, leg, ranking, gold)
            record = _record(self.config, task, corpus, question, split, rankings["fused"])
            yield record, _ranking(corpus, record, rankings)

    def _legs(self, numbers: range, questions: Sequence[Question]) -> dict[str, list[_Found]]:
        """Per leg and question: the best places with their scores."""
        queries = [self.bm25.tokenizer(question.text) for question in questions]
        legs = {"bm25": list(map(_Found, *self.bm25.search_batch(queries, DEPTH)))}
        if self.dense is not None and self.queries is not None:
            found = zip(*self.dense.search(self.queries[numbers.start : numbers.stop], DEPTH), strict=True)
            legs["dense"] = [_Found(places[places >= 0], scores[places >= 0]) for places, scores in found]
        return legs


def open_work(config: ContextConfig, folder: Path) -> QaWork:
    """Opens what `prepare` wrote."""
    corpus = _Corpus.open(folder)
    dense = queries = None
    if config.qa is not None and "dense" in config.qa.legs:
        dense = DenseIndex.load(folder / VECTORS)
        queries = load_array(folder / "queries.npy")
    bm25 = open_index(config, corpus.texts, folder)
    questions = Items(folder / "questions.arrow", Question)
    return QaWork(config, corpus, questions, load_array(folder / "kept.npy"), bm25, dense, queries)


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
        apart = ~np.isin(corpus.content[fused], corpus.content[oracles])
        others = fused[apart & (corpus.split[fused] != "test")].tolist()
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
        row[leg] = [corpus.documents.value("id", place) for place in places]
    return row
