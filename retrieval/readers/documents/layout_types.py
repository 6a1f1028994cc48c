"""The types that the readers of documents and questions return, in every layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.text.normalize import keep_lines
from retrieval.text.supporting_facts import sentence_places

#: Why a question is dropped that its documents do not answer. Where abstaining is taught, it is kept.
UNANSWERABLE = "question_unanswerable"


class FoundDocument(NamedTuple):
    """A document that a reader found in a file.

    Attributes:
        where: file and row, for errors.
        document: the document, its text tidied with its lines kept.
        raw_text: the text of the file. Chunks and answer spans are ranges of its characters.
        id_from_content: whether the id is made of the content. If so, the same id means the same document and
            may be repeated. Otherwise a repeated id is an error.
        dropped: why the document cannot be used, for the counts; "" for a usable one.
        why: the same as a line for errors.
    """

    where: str
    document: Document
    raw_text: str
    id_from_content: bool = False
    dropped: str = ""
    why: str = ""


class FoundQuestion(NamedTuple):
    """A question that a reader found in a file.

    It comes with its place, for errors, and the reason to drop it, or "" if there is none.
    """

    where: str
    question: Question
    dropped: str = ""


class FoundInstruction(NamedTuple):
    """An instruction with its answer that a reader found in a file.

    Attributes:
        where: file and row, for errors.
        row: 1-based row in the file.
        key: the value of the row's id; None if it has none.
        instruction: the instruction.
        input: what the instruction is about; "" for nothing.
        output: the answer.
        dropped: why the row cannot be taught, for the counts; "" for a row that can.
    """

    where: str
    row: int
    key: Any
    instruction: str = ""
    input: str = ""
    output: str = ""
    dropped: str = ""


class InstructionReader(Protocol):
    """The interface of a reader: a module of `DOCUMENT_LAYOUTS` that has instructions."""

    def read_instructions(self, file: SourceFile) -> Iterator[FoundInstruction]:
        """Read a file's instructions.

        Raises:
            InputError: the file cannot be read, or a row is broken.
        """
        ...


class LayoutReader(Protocol):
    """The interface of a reader: a module of `DOCUMENT_LAYOUTS` that has documents."""

    def read_documents(self, file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
        """Read a file's documents. `tally` counts items that only this layout has, such as pages.

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
    """A document of a question set without document ids. The text is that of the file.

    `sentences` are its numbered sentences, if the layout has them.
    """

    where: str
    row: int
    title: str
    text: str
    id: str
    sentences: tuple[str, ...] = ()

    @classmethod
    def identified(cls, where: str, row: int, title: str, text: str) -> Paragraph:
        """Make a paragraph whose id is its title and a digest of its text.

        So equal paragraphs are the same document.

        Args:
            where: file and row, for errors.
            row: 1-based row in the file.
            title: the folded title, "" for none.
            text: the text of the file, not folded.
        """
        # Surrogates that JSON may hold alone are no UTF-8, and must not stop the digest.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return cls(where, row, title, text, f"{title}#{digest}")

    def found(self, file: SourceFile) -> FoundDocument:
        """Return the paragraph as a document that was found in the file."""
        text = keep_lines(self.text)
        places = sentence_places([keep_lines(sentence) for sentence in self.sentences], text)
        document = Document(self.id, self.title, text, file.name, self.row, sentences=places)
        return FoundDocument(self.where, document, self.text, id_from_content=True)
