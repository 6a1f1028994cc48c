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

from retrieval import guards, hybrid, prompts
from retrieval.bm25 import Ranker
from retrieval.budget import token_count
from retrieval.chunking import ask_about_chunks, load_chunker
from retrieval.columns import IdIndex, Items, load_array, save_array, write_items
from retrieval.config import LEGS, ContextConfig, QaTask
from retrieval.corpus import Document, Question
from retrieval.dense import Embedder
from retrieval.distractors import sharing_groups
from retrieval.near_duplicates import NearDuplicates
from retrieval.readers.alpaca import is_alpaca
from retrieval.report import Progress, TaskReport
from retrieval.rerank import Reranker, load_reranker
from retrieval.sources import document_files, question_files, tokenizer_folder
from retrieval.styles import AnswerTemplate
from retrieval.tasks import alpaca
from retrieval.tasks.index import counted, index_texts, open_index
from retrieval.tasks.qa_record import AskedQuestion, QaBuilder
from retrieval.tasks.threads import RANKING_DEPTH
from retrieval.text import duplicate_key
from retrieval.vectors import DenseIndex, kind_for, recall_against_flat

DEPTH = 100
#: Questions that are searched at once.
SEARCH_BATCH = 256
#: Content digests as raw bytes; "S16" would drop zeros at the end.
CONTENT = np.dtype("V16")
VECTORS = "vectors.faiss"
#: What bars a document from training prompts: it is held out, or equal or nearly equal to one that is.
FREE, HELD_OUT, TWIN, NEAR_TWIN = range(4)


@dataclass(frozen=True)
class _Corpus:
    """The documents, whether training may see each, the digest of its content, and since when it exists
    (seconds since 1970, NaN where nobody knows).
    """

    documents: Items[Document]
    place: IdIndex
    barred: np.ndarray
    content: np.ndarray
    times: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> _Corpus:
        """The corpus that `prepare` wrote."""
        documents = Items(folder / "documents.arrow", Document)
        arrays = [load_array(folder / f"{name}.npy") for name in ("barred", "content", "times")]
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

    def among(self, which: np.ndarray | slice) -> _Found:
        """Some of it, in the same order."""
        return _Found(self.places[which], self.scores[which])

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
    task = config.qa
    assert task is not None
    if is_alpaca(task):
        return alpaca.prepare(config, folder, report, progress)
    AnswerTemplate.of(task, "qa")  # refused before hours of work, not after
    documents, questions = _read(config, task, folder, report, progress)
    corpus, splits = _corpus(config, task, folder, documents, questions, progress)
    guards.require_training(splits.values(), "qa", "documents with questions")
    kept = _kept(config, task, corpus, questions, splits, report)
    save_array(folder / "kept.npy", np.array(kept, dtype=np.int64))
    contexts = list(questions.column("context_id"))
    held_out = [splits[contexts[number]] == "test" for number in kept]
    save_array(folder / "held-out.npy", np.array(held_out, dtype=bool))
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


def _read(
    config: ContextConfig, task: QaTask, folder: Path, report: TaskReport, progress: Progress
) -> tuple[Items[Document], Items[Question]]:
    """Streams documents (or their chunks) and questions from their sources into files."""
    from retrieval.readers.documents import no_questions, stream_documents, stream_questions

    chunker = None
    if task.chunk_tokens is not None:
        chunker = load_chunker(tokenizer_folder(config), task.chunk_tokens, task.chunk_overlap)
    found = stream_documents(document_files(task), report.tally, chunker, task.format)
    found = counted(found, "qa: read documents", progress)
    documents = write_items(folder / "documents.arrow", Document, found)
    chunks = _Chunks(documents, IdIndex.build(folder / "contexts", documents, "context_id"))
    files = question_files(task)
    read = stream_questions(files, chunks, report.tally, task.format)
    read = counted(read, "qa: read questions", progress)
    asked = ask_about_chunks(read, chunks, report.tally)
    questions = write_items(folder / "questions.arrow", Question, asked)
    if not len(questions):
        raise no_questions(files)
    return documents, questions


class _Chunks(Mapping[str, Sequence[Document]]):
    """From a whole document's id to its chunks, which follow one another in the file."""

    def __init__(self, documents: Items[Document], first: IdIndex) -> None:
        self._documents, self._first = documents, first

    def __getitem__(self, context_id: str) -> list[Document]:
        found: list[Document] = []
        for document in self._documents.run(self._first[context_id], len(self._documents), 16):
            if document.context_id != context_id:
                break
            found.append(document)
        return found

    def __contains__(self, context_id: object) -> bool:
        return context_id in self._first

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(document.context_id for document in self._documents))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _corpus(
    config: ContextConfig,
    task: QaTask,
    folder: Path,
    documents: Items[Document],
    questions: Items[Question],
    progress: Progress,
) -> tuple[_Corpus, dict[str, str]]:
    """The corpus, and the split of each context that is asked about."""
    place = IdIndex.build(folder, documents)
    asked = _context_splits(config, task, documents, questions, place)
    barred = np.zeros(len(documents), dtype=np.uint8)
    content = np.zeros(len(documents), dtype=CONTENT)
    for at, document in enumerate(documents):
        if asked.get(document.context_id) == "test":
            barred[at] = HELD_OUT
        content[at] = np.void(duplicate_key(document.title, document.text))
    for context, oracles in zip(questions.column("context_id"), questions.column("oracles"), strict=True):
        if asked[context] == "test":
            for oracle in oracles:
                barred[place[oracle]] = HELD_OUT
    # A twin of a held-out document is held out itself, or its text would reach a training prompt.
    barred[(barred == FREE) & np.isin(content, content[barred == HELD_OUT])] = TWIN
    if config.near_duplicates != "off":
        _bar_near_twins(barred, documents, config.near_duplicates, progress)
    save_array(folder / "barred.npy", barred)
    save_array(folder / "content.npy", content)
    # An unknown time is no number, which is later than nothing.
    since = (np.nan if time is None else time for time in documents.column("time"))
    save_array(folder / "times.npy", np.fromiter(since, dtype=np.float64, count=len(documents)))
    return _Corpus.open(folder), asked


def _context_splits(
    config: ContextConfig,
    task: QaTask,
    documents: Items[Document],
    questions: Items[Question],
    place: IdIndex,
) -> dict[str, str]:
    """The split of each context by the hash of its id, or by when it was last asked about (else, written)."""
    if task.split == "context":
        contexts = dict.fromkeys(questions.column("context_id"))
        return {c: guards.split_of(config.seed, c, config.test_share) for c in contexts}
    times: dict[str, float | None] = {}
    columns = (questions.column(name) for name in ("context_id", "oracles", "time"))
    for context, oracles, time in zip(*columns, strict=True):
        if time is None:
            time = documents.value("time", place[oracles[0] if oracles else context])
        known = [t for t in (times.get(context), time) if t is not None]
        times[context] = max(known, default=None)
    return guards.splits_by_time(times, config.test_share, "qa.split")


def _bar_near_twins(
    barred: np.ndarray, documents: Items[Document], threshold: float, progress: Progress
) -> None:
    """Marks the free documents that nearly repeat a held-out one."""
    held = np.flatnonzero(barred != FREE)
    free = np.flatnonzero(barred == FREE)
    if not len(held):
        return
    texts = (_text(d) for d, mark in zip(documents, barred.tolist(), strict=True) if mark != FREE)
    index = NearDuplicates(texts, lambda at: _text(documents[int(held[at])]), threshold)
    texts = (_text(d) for d, mark in zip(documents, barred.tolist(), strict=True) if mark == FREE)
    near = np.zeros(len(free), dtype=bool)
    matches = counted(index.matches(texts), "qa: near-duplicates", progress, len(free))
    for number, found in enumerate(matches):
        near[number] = found >= 0
    barred[free[near]] = NEAR_TWIN


def _kept(
    config: ContextConfig,
    task: QaTask,
    corpus: _Corpus,
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

    task: QaTask
    builder: QaBuilder
    corpus: _Corpus
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


def open_work(config: ContextConfig, folder: Path) -> QaWork | alpaca.AlpacaWork:
    """Opens what `prepare` wrote."""
    if (folder / alpaca.TRIPLES).is_file():
        return alpaca.open_work(folder)
    task = config.qa
    assert task is not None
    corpus = _Corpus.open(folder)
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
    say = {leg: legs[leg][number].say(pool) for leg in LEGS if leg in task.legs}
    rankings["fused"] = pool[hybrid.fuse(say, len(pool), task.fusion, task.rrf_k, task.weights)]
    return rankings


def _ranking(corpus: _Corpus, record: dict[str, Any], rankings: dict[str, np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {key: record[key] for key in ("id", "context_id", "split", "task")}
    row |= {"candidate_ids": [], "candidate_authors": [], "opening_id": "", "opening_author": ""}
    row |= {"gold_ids": record["oracle_ids"], "gold_authors": []}
    for leg in (*LEGS, "fused", "reranked"):
        ranked = rankings.get(leg)
        places = [] if ranked is None else ranked[:RANKING_DEPTH].tolist()
        row[leg] = [corpus.documents.value("id", place) for place in places]
    return row
