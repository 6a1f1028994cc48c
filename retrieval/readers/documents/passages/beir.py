"""The corpus of a BEIR data set (Thakur et al. 2021): `corpus.jsonl` with `_id`, `title` and `text`.

BEIR's queries name relevant documents but no answers, so they cannot be taught: give questions of your own.
"""

from __future__ import annotations

from collections.abc import Iterator

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Tally
from retrieval.readers.documents.layout_types import FoundDocument, FoundQuestion
from retrieval.readers.files.rows import rows, text_of, text_or_empty
from retrieval.text.normalize import fold, keep_lines
from retrieval.text.values import is_empty

EXPECTED = "an object with _id, title, text"


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read each row of the corpus as a document.

    Raises:
        InputError: a row is broken, or the file holds queries.
    """
    for where, row, value in rows(file, ("_id", "text"), ("title",), EXPECTED, nullable=("text",)):
        if "title" not in value and file.path.name.startswith("queries"):
            raise _no_answers(file)
        title = "" if is_empty(value.get("title")) else text_of(value["title"], "title", where)
        # Some corpora have documents of a title alone.
        text = text_or_empty(value["text"], "text", where)
        document = Document(
            fold(text_of(value["_id"], "_id", where)), fold(title), keep_lines(text), file.name, row
        )
        yield FoundDocument(where, document, text)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Raise an error, because BEIR has no answers.

    Raises:
        InputError: always.
    """
    raise _no_answers(file)


def _no_answers(file: SourceFile) -> InputError:
    return InputError(
        f"{file.path}: BEIR's queries have no answers to teach; give corpus.jsonl as source, and questions "
        "of your own with id, document_id, question, answers as qa.questions"
    )
