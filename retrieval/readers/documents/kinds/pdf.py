"""Read the text of PDF files. Ligatures become letters, and words that a line break cuts are joined."""

from __future__ import annotations

import logging
import re

from jora_core.base.errors import InputError, read_error
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.corpus.unpacking import UnreadableFile
from retrieval.readers.documents.kinds.kind_reader import FileText
from retrieval.text.normalize import fold

_LIGATURES = str.maketrans(
    {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
)
# A soft hyphen is always that of a line; a hyphen may be the word's own.
_SOFT = re.compile("\u00ad *\n? *")
_PARTED = re.compile(r"([^\W\d_]+)[-‐] *\n *([^\W\d_]+)")
_WORD = re.compile(r"[^\W\d_]+(?:[-‐][^\W\d_]+)*")


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read the title of a PDF, and the texts of its pages with blank lines between them.

    Raises:
        UnreadableFile: the file is encrypted, or no PDF.
        InputError: the file cannot be opened.
    """
    from pypdf import PdfReader

    # pypdf logs a line for every harmless flaw of a file.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        opened = file.path.open("rb")
    except OSError as error:
        raise read_error(file.path, error) from error
    try:
        with opened as handle:
            reader = PdfReader(handle)
            # Many PDFs are encrypted with an empty user password, only to forbid printing; those can be read.
            if reader.is_encrypted and not reader.decrypt(""):
                raise UnreadableFile(
                    f"{file.path}: the PDF is encrypted; save it without a password", "encrypted"
                )
            pages = [_utf8(page.extract_text()) for page in reader.pages]
            meta = reader.metadata
            title = _utf8(str(meta.title)) if meta is not None and meta.title else ""
    except InputError:
        raise
    except Exception as error:  # a broken PDF gives any exception there is, from deep within the library
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableFile(
            f"{file.path}: not a readable PDF ({reason:.200}); print it to a new one", "not_a_pdf"
        ) from error
    tally.read["pages"] += len(pages)
    tally.read["pages_without_text"] += sum(not page.strip() for page in pages)
    text, joined = whole_words("\n\n".join(pages))
    tally.read["words_joined_over_lines"] += joined
    return FileText(fold(title), text)


def whole_words(text: str) -> tuple[str, int]:
    """Join the words that line breaks cut; return the text and the number of joined words.

    `com-` and `puter` on two lines are `computer`. If the text has the word with its hyphen elsewhere
    (`well-known`), and not without, the hyphen stays.
    """
    text = text.translate(_LIGATURES)
    text, soft = _SOFT.subn("", text)
    if _PARTED.search(text) is None:
        return text, soft
    known = {word.casefold() for word in _WORD.findall(text)}

    def whole(parts: re.Match[str]) -> str:
        first, second = parts[1], parts[2]
        hyphenated, plain = f"{first}-{second}", first + second
        if plain.casefold() in known:
            return plain
        # A capital letter begins a part of a name, as in Anna-Maria.
        own = hyphenated.casefold() in known or not second[0].islower()
        return hyphenated if own else plain

    text, parted = _PARTED.subn(whole, text)
    return text, soft + parted


def _utf8(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 cannot encode and which fonts may map glyphs to."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
