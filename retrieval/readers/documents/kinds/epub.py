"""Read EPUB books: the pages of an archive, in the order of the book's spine."""

from __future__ import annotations

import posixpath
import zipfile
from urllib.parse import unquote
from xml.etree import ElementTree

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.corpus.unpacking import UnreadableFile
from retrieval.readers.documents.kinds.html import html_text
from retrieval.readers.documents.kinds.kind_reader import FileText, decoded, packed_document
from retrieval.text.normalize import fold

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read an EPUB book. Pages are counted as `pages`, and those that the book names and does not hold, too.

    Raises:
        UnreadableFile: the file is no EPUB.
        InputError: the file cannot be opened, or unpacks to too much.
    """
    try:
        with packed_document(file) as archive:
            title, pages, absent = _book(archive, file)
    except InputError:
        raise
    # A book that lacks a file or an attribute, encrypted pages, broken XML, damaged data.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableFile(
            f"{file.path}: not a readable EPUB book ({reason:.200}); save it again", "not_an_epub"
        ) from error
    tally.read["pages"] += len(pages)
    tally.read["pages_that_are_not_in_the_book"] += absent
    found = [html_text(page, tally) for page in pages]
    # A chapter's heading is part of the book's text.
    texts = [f"# {page.title}\n\n{page.text}" if page.title else page.text for page in found if page.text]
    return FileText(title, "\n\n".join(texts))


def _book(archive: zipfile.ZipFile, file: SourceFile) -> tuple[str, list[str], int]:
    """Return the title of a book, its pages in reading order, and how many pages it names and does not hold.

    Raises:
        UnreadableFile: a page is encrypted, or has another encoding than it says.
        KeyError: the book holds none of its pages.
    """
    container = ElementTree.fromstring(archive.read(_CONTAINER))
    root = next(element for element in container.iter() if _name(element) == "rootfile")
    package_path = root.attrib["full-path"]
    package = ElementTree.fromstring(archive.read(package_path))
    folder = posixpath.dirname(package_path)
    items = {e.attrib["id"]: e.attrib["href"] for e in package.iter() if _name(e) == "item"}
    title = next((e.text or "" for e in package.iter() if _name(e) == "title"), "")
    held, encrypted = set(archive.namelist()), _encrypted(archive)
    pages: list[str] = []
    absent = 0
    for reference in (e for e in package.iter() if _name(e) == "itemref"):
        # `linear="no"` marks what lies beside the text, such as answers to exercises.
        if reference.attrib.get("linear") == "no":
            continue
        href = items.get(reference.attrib["idref"], "")
        path = posixpath.normpath(posixpath.join(folder, unquote(href)))
        if path in encrypted:
            raise UnreadableFile(
                f"{file.path}: its pages are encrypted (DRM); give a book without it", "encrypted"
            )
        if path in held:
            pages.append(decoded(archive.read(path), file, html=True))
        else:
            absent += 1
    if absent and not pages:
        raise KeyError(f"none of its {absent} pages is in the archive")
    return fold(title), pages, absent


def _encrypted(archive: zipfile.ZipFile) -> set[str]:
    """Return the paths of the encrypted files of a book. Fonts often are, in books without DRM, too."""
    if _ENCRYPTION not in archive.namelist():
        return set()
    listed = ElementTree.fromstring(archive.read(_ENCRYPTION))
    return {unquote(e.attrib.get("URI", "")) for e in listed.iter() if _name(e) == "CipherReference"}


def _name(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace."""
    return element.tag.rpartition("}")[2]
