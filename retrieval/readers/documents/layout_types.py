"""What the readers of documents and questions give, whatever the layout of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.text.normalize import fold


class FoundDocument(NamedTuple):
    """A document as it stands in a file.

    Attributes:
        where: file and row, for errors.
        document: the document, its text folded.
        raw_text: the text before folding, which chunks and answer spans count their characters in.
        id_from_content: whether the id is made of the content. The same id then means the same document,
            which may come again; otherwise an id that comes again is a mistake.
    """

    where: str
    document: Document
    raw_text: str
    id_from_content: bool = False


class FoundQuestion(NamedTuple):
    """A question as it stands in a file: its place for errors, and the reason to drop it ("": none)."""

    where: str
    question: Question
    dropped: str = ""


class LayoutReader(Protocol):
    """A module of `DOCUMENT_LAYOUTS` that has documents."""

    def read_documents(self, file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
        """Read a file's documents; `tally` counts what only this layout has, such as pages.

        Raises:
            InputError: the file cannot be read, or a row is broken.
        """
        ...

    def read_questions(self, file: SourceFile) -> Iterator[FoundQuestion]:
        """Read a file's questions.

        Raises:
            InputError: the file cannot be read, a row is broken, or the layout has no questions.
        """
        ...


class Paragraph(NamedTuple):
    """A document of a question set that gives its documents no ids; the text is not folded."""

    where: str
    row: int
    title: str
    text: str
    id: str

    @classmethod
    def identified(cls, where: str, row: int, title: str, text: str) -> Paragraph:
        """Return a paragraph whose id is its title and a digest of its text.

        So an equal paragraph is the same document, wherever it occurs.

        Args:
            where: file and row, for errors.
            row: 1-based row in the file.
            title: the folded title, "" for none.
            text: the text as it stands in the file.
        """
        # Surrogates that JSON may hold alone are no UTF-8, and must not stop the digest.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return cls(where, row, title, text, f"{title}#{digest}")

    def found(self, file: SourceFile) -> FoundDocument:
        """Return the paragraph as a document of the file."""
        document = Document(self.id, self.title, fold(self.text), file.name, self.row)
        return FoundDocument(self.where, document, self.text, id_from_content=True)
