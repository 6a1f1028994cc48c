"""Read `.txt`, `.md` and `.pdf` files. Each file is one document, whose id is its path below the source."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Tally
from retrieval.corpus.unpacking import open_binary
from retrieval.readers.documents.layout_types import FoundDocument, FoundQuestion
from retrieval.text.normalize import fold

# An ATX heading of level one, with closing `#` signs left out: `# Title #`.
_HEADING = re.compile(r"^ {0,3}# +(.+?)(?: +#+)? *$", re.MULTILINE)


def read_documents(file: SourceFile, tally: Tally) -> Iterator[FoundDocument]:
    """Read a file as one document.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is an encrypted or broken PDF.
    """
    title, text = read_text_file(file, tally)
    yield FoundDocument(str(file.path), Document(file.name, title, fold(text), file.name, 1), text)


def read_questions(file: SourceFile) -> Iterator[FoundQuestion]:
    """Raise an error, because text files hold no questions.

    Raises:
        InputError: always.
    """
    raise InputError(f"{file.path}: a text file holds no questions; expected .jsonl, .json or .parquet")


def read_text_file(file: SourceFile, tally: Tally) -> tuple[str, str]:
    """Read (title, text) of a file.

    The title is the first Markdown heading, the title of the PDF, or the name of the file.

    Markup is kept. The text is empty if the file has none, as in a scanned PDF.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is an encrypted or broken PDF.
    """
    name = PurePosixPath(file.name)
    if name.suffix.lower() == ".pdf":
        title, text = _pdf(file, tally)
        return title or name.stem, text
    with open_binary(file.path) as handle:
        raw = handle.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file.path}:{line}: not UTF-8; save the file as UTF-8") from error
    heading = _HEADING.search(text) if name.suffix.lower() == ".md" else None
    if heading is None:
        return name.stem, text
    if not text[: heading.start()].strip():
        # The title would stand in the prompt twice. Spaces in its place keep the offsets of all other text.
        text = " " * heading.end() + text[heading.end() :]
    return fold(heading[1]), text


def _pdf(file: SourceFile, tally: Tally) -> tuple[str, str]:
    """Return the title of a PDF, or "", and the texts of its pages with blank lines between them."""
    from pypdf import PdfReader

    # pypdf logs a line for every harmless flaw of a file.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with file.path.open("rb") as handle:
            reader = PdfReader(handle)
            # Many PDFs are encrypted with an empty user password, only to forbid printing; those can be read.
            if reader.is_encrypted and not reader.decrypt(""):
                raise InputError(f"{file.path}: the PDF is encrypted; save it without a password")
            pages = [_utf8(page.extract_text()) for page in reader.pages]
            meta = reader.metadata
            title = _utf8(str(meta.title)) if meta is not None and meta.title else ""
    except InputError:
        raise
    except Exception as error:  # a broken PDF gives any exception there is, from deep within the library
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file.path}: not a readable PDF ({reason:.200}); print it to a new one") from error
    tally.read["pages"] += len(pages)
    tally.read["pages_without_text"] += sum(not page.strip() for page in pages)
    return fold(title), "\n\n".join(pages)


def _utf8(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 cannot encode and which fonts may map glyphs to."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
