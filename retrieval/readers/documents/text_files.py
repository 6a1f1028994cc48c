"""Read files that are one document each: text, Markdown, source code, HTML, PDF, DOCX, EPUB.

The id of a document is the path of its file below the source, with composed accents. `TEXT_KINDS` names the
reader of each ending.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import PurePosixPath
from typing import cast

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Tally
from retrieval.corpus.unpacking import UnreadableFile
from retrieval.readers.documents.kinds.kind_reader import FileText, KindReader
from retrieval.readers.documents.layout_types import FoundDocument, FoundQuestion
from retrieval.settings.document_layouts import CODE_SUFFIXES, TEXT_KINDS
from retrieval.text.normalize import composed, keep_lines


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read a file as one document. A file that is no document of its kind is dropped, whatever its kind.

    Raises:
        InputError: the file cannot be opened, or is larger than the limits allow.
    """
    try:
        found = read_text_file(file, tally)
    except UnreadableFile as error:
        nothing = Document(composed(file.name), "", "", file.name, 1)
        yield FoundDocument(str(file.path), nothing, "", dropped=f"document_{error.reason}", why=str(error))
        return
    document = Document(composed(file.name), found.title, keep_lines(found.text), file.name, 1)
    yield FoundDocument(str(file.path), document, found.text)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Raise an error, because text files hold no questions.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{file.path}: a text file holds no questions; name a .jsonl, .json or .parquet file in "
        "context.qa.questions"
    )


def read_text_file(file: SourceFile, tally: Tally) -> FileText:
    """Read the title and text of a file.

    The title is that of the file's content, such as its first heading, or the name of the file.

    Raises:
        UnreadableFile: the file is no document of its kind.
        InputError: the file cannot be opened, or is larger than the limits allow.
    """
    name = PurePosixPath(file.name)
    kind = name.suffix.lower()
    reader = cast(KindReader, import_module(TEXT_KINDS[kind]))
    found = reader.read_file(file, tally)
    # The ending of a source file names its language.
    return found._replace(title=found.title or (name.name if kind in CODE_SUFFIXES else name.stem))
