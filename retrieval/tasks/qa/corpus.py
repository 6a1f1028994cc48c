"""The documents of a question corpus on disk: read as a stream, split, and excluded from training prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from jora_core.base.errors import InputError
from retrieval.corpus.chunking import load_chunker, with_chunk_oracles
from retrieval.corpus.id_index import IdIndex
from retrieval.corpus.mapped_items import Items, load_array, save_array, write_items
from retrieval.corpus.tokenizer_folder import tokenizer_folder
from retrieval.corpus.types import Document, Question
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.guards.near_duplicates import NearDuplicates
from retrieval.guards.splits import split_of, splits_by_time
from retrieval.readers.documents.documents import no_questions, stream_documents, stream_questions
from retrieval.readers.documents.synthetic_questions import read_synthetic_questions
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa.inputs import document_survey, question_files, synthetic_files
from retrieval.tasks.task_index import counted
from retrieval.text.labels import titled
from retrieval.text.normalize import duplicate_key

#: Content digests as raw bytes; "S16" would drop zeros at the end.
CONTENT = np.dtype("V16")
#: Why a document is barred from training prompts: it is held out, or it equals or nearly equals a held-out
#: one.
# Four values and not a flag, because questions about a twin and about a near twin are counted apart.
FREE, HELD_OUT, TWIN, NEAR_TWIN = range(4)


@dataclass(frozen=True)
class Corpus:
    """The documents on disk, with the arrays that decide in which prompts a document may be.

    Attributes:
        documents: the documents or their chunks.
        place: index from the id of a document to its place.
        barred: uint8[documents], one of `FREE`, `HELD_OUT`, `TWIN`, `NEAR_TWIN`.
        content: V16[documents], digests of the words.
        times: float64[documents], time from which each exists, in seconds since 1970; NaN: unknown.
    """

    documents: Items[Document]
    place: IdIndex
    barred: np.ndarray
    content: np.ndarray
    times: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Open the corpus that `write_corpus` wrote to a folder."""
        documents = Items(folder / "documents.arrow", Document)
        arrays = [load_array(folder / f"{name}.npy") for name in ("barred", "content", "times")]
        return cls(documents, IdIndex(folder, documents), *arrays)

    def text(self, place: int) -> str:
        """Return the indexed text of the document at a place: its title and text."""
        return document_text(self.documents[place])

    def texts(self) -> Iterator[str]:
        """Yield the indexed text of every document: its title and text."""
        return map(document_text, self.documents)


def document_text(document: Document) -> str:
    """Return the indexed text of a document: its title and text."""
    return titled(document.title, document.text)


def read_corpus(
    config: ContextConfig, task: QaTask, folder: Path, report: TaskReport, progress: Progress
) -> tuple[Items[Document], Items[Question]]:
    """Read documents (or their chunks) and questions from their sources, and write them to files as streams.

    Args:
        config: the configuration.
        task: the `qa` section of the configuration.
        folder: folder of the files.
        report: counts what was read and dropped.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    chunker = None
    if task.chunk_tokens is not None:
        chunker = load_chunker(tokenizer_folder(config), task.chunk_tokens, task.chunk_overlap)
    survey = document_survey(task)
    report.tally.dropped.update(survey.left_out)
    left_out: dict[str, str] = {}
    found = stream_documents(survey.files, report.tally, chunker, task.format, left_out)
    found = counted(found, "qa: read documents", progress)
    documents = write_items(folder / "documents.arrow", Document, found)
    # Ids of whole documents are looked up on disk: a dictionary of all chunks would hold the corpus in
    # memory.
    chunks = _Chunks(documents, IdIndex.build(folder / "contexts", documents, "context_id"))
    files = question_files(task)
    read = stream_questions(files, chunks, report.tally, task.format, task.abstain, left_out)
    read = counted(read, "qa: read questions", progress)
    found_questions = with_chunk_oracles(read, chunks, report.tally)
    made = synthetic_files(task)
    found_questions = chain(found_questions, read_synthetic_questions(made, chunks, report.tally))
    questions = write_items(folder / "questions.arrow", Question, found_questions)
    if not len(questions) and made and not files:
        raise InputError(
            f"{made[0].path}: every made question was refused, so nothing can be taught; `jora questions` "
            "says why, and its --review shows them"
        )
    if not len(questions):
        raise no_questions(files)
    return documents, questions


class _Chunks(Mapping[str, Sequence[Document]]):
    """A map from the id of a whole document to its chunks, which are adjacent in the file."""

    def __init__(self, documents: Items[Document], first: IdIndex) -> None:
        self._documents, self._first = documents, first

    def __getitem__(self, context_id: str) -> list[Document]:
        found: list[Document] = []
        # Sixteen rows at a time: most documents have a few chunks.
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


def write_corpus(
    config: ContextConfig,
    task: QaTask,
    folder: Path,
    documents: Items[Document],
    questions: Items[Question],
    progress: Progress,
) -> tuple[Corpus, dict[str, str]]:
    """Write the arrays of a corpus. Return the corpus, and the split of each context that has questions.

    Args:
        config: the configuration.
        task: the `qa` section of the configuration.
        folder: folder of the arrays.
        documents: the documents that `read_corpus` returned.
        questions: the questions that `read_corpus` returned.
        progress: receives (step, done, total) while the work advances.
    """
    # This index is not that of `read_corpus`: it finds chunks, the other finds whole documents.
    place = IdIndex.build(folder, documents)
    splits = _context_splits(config, task, documents, questions, place)
    barred = np.zeros(len(documents), dtype=np.uint8)
    content = np.zeros(len(documents), dtype=CONTENT)
    for at, document in enumerate(documents):
        if splits.get(document.context_id) == "test":
            barred[at] = HELD_OUT
        # The digest is of folded words, so a copy with other punctuation or case counts as equal.
        content[at] = np.void(duplicate_key(document.title, document.text))
    # Where a question needs several documents, all of them are held out with it.
    for context, oracles in zip(questions.column("context_id"), questions.column("oracles"), strict=True):
        if splits[context] == "test":
            for oracle in oracles:
                barred[place[oracle]] = HELD_OUT
    # A document that equals a held-out one is barred too, or the text would reach a training prompt.
    barred[(barred == FREE) & np.isin(content, content[barred == HELD_OUT])] = TWIN
    if config.near_duplicates != "off":
        _bar_near_twins(barred, documents, config.near_duplicates, progress)
    save_array(folder / "barred.npy", barred)
    save_array(folder / "content.npy", content)
    # An unknown time is NaN: every comparison with it is false, so it is later than no question.
    since = (np.nan if time is None else time for time in documents.column("time"))
    save_array(folder / "times.npy", np.fromiter(since, dtype=np.float64, count=len(documents)))
    return Corpus.open(folder), splits


def _context_splits(
    config: ContextConfig,
    task: QaTask,
    documents: Items[Document],
    questions: Items[Question],
    place: IdIndex,
) -> dict[str, str]:
    """Return the split of each context, by the hash of its id or by time.

    The time of a context is that of the latest question about it, else that of its document.
    """
    if task.split == "context":
        # Only contexts with questions are split. A document without a question may be in the prompt of any
        # question.
        contexts = dict.fromkeys(questions.column("context_id"))
        return {c: split_of(config.seed, c, config.test_share) for c in contexts}
    times: dict[str, float | None] = {}
    columns = (questions.column(name) for name in ("context_id", "oracles", "time"))
    for context, oracles, time in zip(*columns, strict=True):
        if time is None:
            time = documents.value("time", place[oracles[0] if oracles else context])
        known = [t for t in (times.get(context), time) if t is not None]
        # The latest time, because a context is as new as its newest question.
        times[context] = max(known, default=None)
    return splits_by_time(times, config.test_share, "qa.split")


def _bar_near_twins(
    barred: np.ndarray, documents: Items[Document], threshold: float, progress: Progress
) -> None:
    """Mark the free documents that nearly repeat a held-out document."""
    not_free = np.flatnonzero(barred != FREE)
    free = np.flatnonzero(barred == FREE)
    if not len(not_free):
        return
    texts = (document_text(d) for d, mark in zip(documents, barred.tolist(), strict=True) if mark != FREE)
    index = NearDuplicates(texts, lambda at: document_text(documents[int(not_free[at])]), threshold)
    # Read from the files again, so that the texts are never all in memory.
    texts = (document_text(d) for d, mark in zip(documents, barred.tolist(), strict=True) if mark == FREE)
    near = np.zeros(len(free), dtype=bool)
    matches = counted(index.matches(texts), "qa: near-duplicates", progress, len(free))
    for number, found in enumerate(matches):
        near[number] = found >= 0
    barred[free[near]] = NEAR_TWIN
