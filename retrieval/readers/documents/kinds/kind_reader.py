"""What a reader of one kind of file returns, and the decoding of its bytes."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from jora_core.base.errors import InputError, read_error
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.corpus.unpacking import UnreadableFile

#: Bytes that a packed document (DOCX, EPUB) may unpack to.
LARGEST_UNPACKED = 1 << 28
# A page names its encoding in its first bytes, which are ASCII up to there.
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)
# XHTML may name it in its XML declaration instead.
_DECLARED = re.compile(rb"\s*<\?xml[^>]{0,200}encoding\s*=\s*[\"']([\w-]+)")


class FileText(NamedTuple):
    """The content of a file.

    Attributes:
        title: the title in the file; "" if it has none.
        text: the text with its line breaks; "" if there is none, as in a scanned PDF.
    """

    title: str
    text: str


class KindReader(Protocol):
    """The interface of a module of `TEXT_KINDS`."""

    def read_file(self, file: SourceFile, tally: Tally) -> FileText:
        """Read a file. `tally` counts what only this kind has, such as pages.

        Raises:
            UnreadableFile: the file is no document of its kind.
            InputError: the file cannot be opened, or is larger than the limits allow.
        """
        ...


@contextmanager
def packed_document(file: SourceFile) -> Iterator[zipfile.ZipFile]:
    """Open a document that is a zip archive, after checking how large it becomes.

    Raises:
        InputError: the file cannot be opened, or unpacks to too much.
        zipfile.BadZipFile: the file is no zip archive.
    """
    # Opened here: a damaged archive may raise an OSError, too, such as for a place before its start.
    try:
        opened = file.path.open("rb")
    except OSError as error:
        raise read_error(file.path, error) from error
    with opened, zipfile.ZipFile(opened) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > LARGEST_UNPACKED:
            raise InputError(
                f"{file.path}: unpacks to {unpacked} bytes, more than {LARGEST_UNPACKED}; split the document"
            )
        yield archive


def decoded(raw: bytes, file: SourceFile, html: bool = False) -> str:
    """Decode a file: UTF-8, or what its meta element or XML declaration names (in HTML).

    Args:
        raw: the bytes of the file.
        file: the file, for errors.
        html: whether the bytes are a page, which may name its encoding.

    Raises:
        UnreadableFile: the bytes have another encoding.
    """
    named = (_CHARSET.search(raw[:2048]) or _DECLARED.match(raw)) if html else None
    encoding = named[1].decode("ascii") if named else "utf-8"
    try:
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(
            f"{file.path}:{line}: not {_shown(encoding)}; save the file as UTF-8", "of_another_encoding"
        ) from error
    except LookupError as error:
        raise UnreadableFile(
            f"{file.path}: unknown encoding {encoding!r}; save the file as UTF-8", "of_another_encoding"
        ) from error


def _shown(encoding: str) -> str:
    return "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
