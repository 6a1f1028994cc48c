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
from retrieval.readers.documents.kinds.kind_reader import FileText, packed_document
from retrieval.text.normalize import fold

_CONTAINER = "META-INF/container.xml"


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read an EPUB book. Pages are counted as `pages`.

    Raises:
        UnreadableFile: the file is no EPUB.
        InputError: the file cannot be opened, or unpacks to too much.
    """
    try:
        with packed_document(file) as archive:
            title, pages = _book(archive)
    except InputError:
        raise
    # A book that lacks a file or an attribute, encrypted pages, broken XML, damaged data.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableFile(
            f"{file.path}: not a readable EPUB book ({reason:.200}); save it again", "not_an_epub"
        ) from error
    tally.read["pages"] += len(pages)
    found = [html_text(page, tally) for page in pages]
    # A chapter's heading is part of the book's text.
    texts = [f"# {page.title}\n\n{page.text}" if page.title else page.text for page in found if page.text]
    return FileText(title, "\n\n".join(texts))


def _book(archive: zipfile.ZipFile) -> tuple[str, list[str]]:
    """Return the title of a book and its pages in reading order."""
    container = ElementTree.fromstring(archive.read(_CONTAINER))
    root = next(element for element in container.iter() if _name(element) == "rootfile")
    package_path = root.attrib["full-path"]
    package = ElementTree.fromstring(archive.read(package_path))
    folder = posixpath.dirname(package_path)
    items = {e.attrib["id"]: e.attrib["href"] for e in package.iter() if _name(e) == "item"}
    title = next((e.text or "" for e in package.iter() if _name(e) == "title"), "")
    pages = []
    for reference in (e for e in package.iter() if _name(e) == "itemref"):
        # `linear="no"` marks what lies beside the text, such as answers to exercises.
        if reference.attrib.get("linear") == "no":
            continue
        path = posixpath.normpath(posixpath.join(folder, unquote(items[reference.attrib["idref"]])))
        pages.append(archive.read(path).decode("utf-8-sig"))
    return fold(title), pages


def _name(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace."""
    return element.tag.rpartition("}")[2]
