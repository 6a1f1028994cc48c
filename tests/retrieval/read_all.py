"""The streams of documents and questions, read to their ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.readers.documents.documents import stream_documents, stream_questions


def read_documents(files: Sequence[SourceFile], tally: Tally, layout: str = "auto") -> dict[str, Document]:
    """The documents by id, in file order."""
    return {document.id: document for document in stream_documents(files, tally, layout=layout)}


def read_questions(
    files: Sequence[SourceFile], documents: Collection[str], tally: Tally, layout: str = "auto"
) -> list[Question]:
    """The questions in file order."""
    return list(stream_questions(files, documents, tally, layout))
