"""Read documents and questions of any layout. The reader of the layout reads each file.

If a question and a document both have a time, the question never gets a document that is later than itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import islice
from pathlib import PurePosixPath
from typing import cast

from jora_core.base.errors import InputError
from retrieval.corpus.chunking import Chunker, chunk_document
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.readers.documents.layout_types import UNANSWERABLE, LayoutReader
from retrieval.readers.files.rows import field_names
from retrieval.settings.document_layouts import (
    DEFAULT_LAYOUT,
    DOCUMENT_LAYOUTS,
    INSTRUCTION_LAYOUT,
    TEXT_FILES,
    TEXT_SUFFIXES,
    DocumentLayout,
)

#: Why a document is dropped in which nothing can be found.
WITHOUT_TEXT = "document_without_text"
#: Ids that are searched for one like a name that does not exist.
_SEARCHED = 100_000


def stream_documents(
    files: Sequence[SourceFile],
    tally: Tally,
    chunker: Chunker | None = None,
    layout: str = "auto",
    left_out: dict[str, str] | None = None,
) -> Iterator[Document]:
    """Read the documents of all files in file order. Each id occurs once.

    Args:
        files: the files, each in any layout.
        tally: `read["documents"]` counts the documents in the files. Each is yielded, or counted in `dropped`
            as `document_…`.
        chunker: cuts documents that are longer than one chunk; their chunks are yielded instead.
        layout: the configured layout of rows; "auto": detected from the fields of each file's first row.
        left_out: receives the ids of the documents that are dropped, with the reason.

    Raises:
        InputError: a row is broken, an id is used twice, or there is no document at all.
    """
    # File number and row instead of the file's name: this dictionary has an entry for each document.
    seen: dict[str, tuple[int, int]] = {}
    left_out = {} if left_out is None else left_out
    unusable = ""
    for number, file in enumerate(files):
        for found in _reader(file, layout).read_documents(file, tally):
            where, document, raw_text, id_from_content, dropped, why = found
            tally.read["documents"] += 1
            if dropped:
                tally.dropped[dropped] += 1
                left_out[document.id] = dropped
                unusable = unusable or why
                continue
            if document.id in seen:
                if id_from_content:
                    tally.dropped["document_repeated"] += 1
                    continue
                first, row = seen[document.id]
                raise InputError(
                    f"{where}: document id {document.id!r} is already used at {files[first].name}:{row}"
                )
            if not document.text:
                tally.dropped[WITHOUT_TEXT] += 1
                left_out[document.id] = WITHOUT_TEXT
                unusable = unusable or f"{where}: document {document.id!r:.80} has no text"
                continue
            # A document without text is not noted, so another one with its id may follow.
            seen[document.id] = (number, document.row)
            if chunker is None:
                yield document
                continue
            chunks = chunk_document(document, raw_text, chunker)
            tally.read["chunks"] += len(chunks)
            yield from chunks
    if not seen and unusable:
        raise InputError(
            unusable if len(files) == 1 else f"{unusable} (none of {len(files)} files can be read)"
        )
    if not seen:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(f"{names}: no documents; expected a document a row")


def stream_questions(
    files: Sequence[SourceFile],
    documents: Collection[str],
    tally: Tally,
    layout: str = "auto",
    keep_unanswerable: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> Iterator[Question]:
    """Read the questions of all files in file order.

    Args:
        files: the files, each in any layout.
        documents: the ids of the whole documents.
        tally: `read["questions"]` counts the questions in the files. Each is yielded, or counted in `dropped`
            as `question_…`.
        layout: the configured layout of rows; "auto": detected from the fields of each file's first row.
        keep_unanswerable: whether questions without an answer are yielded; else they are dropped.
        left_out: why documents were dropped, by id. A question about one is dropped too.

    Raises:
        InputError: a row is broken, an id is used twice, or a question names a document that does not
            exist.
    """
    seen: dict[str, tuple[int, int]] = {}
    for number, file in enumerate(files):
        for where, question, dropped in _reader(file, layout).read_questions(file):
            tally.read["questions"] += 1
            if question.id in seen:
                first, row = seen[question.id]
                raise InputError(
                    f"{where}: question id {question.id!r} is already used at {files[first].name}:{row}"
                )
            seen[question.id] = (number, question.row)
            kept = dropped == UNANSWERABLE and keep_unanswerable
            if not dropped or kept:
                dropped = _of_dropped_document(question, documents, left_out)
            if dropped:
                tally.dropped[dropped] += 1
                continue
            if kept:
                tally.read["questions_unanswerable"] += 1
            for name in question.oracle_ids:
                if name not in documents:
                    raise InputError(
                        f"{where}: question {question.id!r} names document {name!r}, which does not exist"
                        + _nearest(name, documents)
                    )
            yield question


def _of_dropped_document(
    question: Question, documents: Collection[str], left_out: Mapping[str, str] | None
) -> str:
    """Return why a question is dropped with one of its documents, or "" if none of them was dropped."""
    # A later document may have the id of one without text.
    reasons = (
        left_out[name]
        for name in question.oracle_ids
        if left_out and name in left_out and name not in documents
    )
    return next((f"question_of_{reason}" for reason in reasons), "")


def _nearest(name: str, documents: Collection[str]) -> str:
    """Return a proposal for an error message: the id of a document that may be meant."""
    # A document that is a file has the ending of its name in its id, which questions often leave out.
    wanted = name.casefold()
    near: dict[str, str] = {}
    for known in islice(documents, _SEARCHED):
        path = PurePosixPath(known.casefold() or "-")
        if wanted in (known.casefold(), path.name, path.stem, str(path.with_suffix(""))):
            return f"; did you mean {known!r}?"
        near[known.casefold()] = known
    found = get_close_matches(wanted, near, 1)
    some = ", ".join(repr(known) for known in islice(near.values(), 3))
    return f"; did you mean {near[found[0]]!r}?" if found else f"; there are {some}"


def no_questions(files: Sequence[SourceFile]) -> InputError:
    """Return the error for files without a question."""
    names = ", ".join(str(file.path) for file in files[:3])
    return InputError(f"{names}: no questions; expected a question a row")


def tells_instructions(file: SourceFile) -> bool:
    """Return whether the fields of a file's first row belong to a layout of instructions with answers."""
    return not _is_text(file) and _layout_by_fields(file, list(DOCUMENT_LAYOUTS.values())).instructions


def instruction_layout(file: SourceFile, layout: str) -> DocumentLayout:
    """Return the layout of a file of instructions, by the configuration or by the fields of its first row."""
    if layout != "auto":
        return DOCUMENT_LAYOUTS[layout]
    found = _layout_by_fields(file, list(DOCUMENT_LAYOUTS.values()))
    # A file without rows that tell it is read in the plainest layout, whose errors name its fields.
    return found if found.instructions else DOCUMENT_LAYOUTS[INSTRUCTION_LAYOUT]


def layout_of(file: SourceFile) -> str:
    """Return the name of the layout that the fields of a file's first row belong to."""
    found = _layout_by_fields(file, list(DOCUMENT_LAYOUTS.values()))
    return next(name for name, layout in DOCUMENT_LAYOUTS.items() if layout is found)


def _reader(file: SourceFile, layout: str) -> LayoutReader:
    """Return the module that reads a file in the configured layout of rows."""
    if _is_text(file):
        found = TEXT_FILES
    elif layout == "auto":
        with_documents = [known for known in DOCUMENT_LAYOUTS.values() if not known.instructions]
        found = _layout_by_fields(file, with_documents)
    else:
        found = DOCUMENT_LAYOUTS[layout]
    return cast(LayoutReader, import_module(found.module))


def _is_text(file: SourceFile) -> bool:
    return file.path.suffix.lower() in TEXT_SUFFIXES


def _layout_by_fields(file: SourceFile, layouts: Sequence[DocumentLayout]) -> DocumentLayout:
    """Return the last layout that matches the fields of a file's first row, else the default layout."""
    # Reading stops at a field that alone identifies a layout, because the first row may hold the whole
    # corpus.
    decisive = {
        field for layout in layouts for fields in layout.told_by if len(fields) == 1 for field in fields
    }
    try:
        names = set(field_names(file, tuple(decisive)))
    except InputError:
        names = set()  # the reader of the rows gives a better error message
    told = (layout for layout in reversed(layouts) if any(fields <= names for fields in layout.told_by))
    return next(told, DOCUMENT_LAYOUTS[DEFAULT_LAYOUT])
