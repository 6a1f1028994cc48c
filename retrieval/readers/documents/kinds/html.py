"""Read HTML pages: their text with headings, lists, tables and code, without menus and scripts."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.corpus.unpacking import read_whole
from retrieval.readers.documents.kinds.kind_reader import FileText, decoded
from retrieval.text.normalize import fold

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

#: Elements without text of the document.
_LEFT_OUT = frozenset((
    "script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "form", "button",
    "select", "nav", "footer", "aside", "head",
))  # fmt: skip
_BLOCKS = frozenset((
    "address", "article", "blockquote", "body", "center", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "header", "hr", "html", "main", "ol", "p", "section", "summary",
    "table", "tbody", "tfoot", "thead", "ul",
))  # fmt: skip
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_SPACE = re.compile(r"[ \t\r\n\f]+")
_LINE_SPACE = re.compile(r" *\n *")


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read an HTML page. Its title is its first heading, else its title element.

    Raises:
        UnreadableFile: the file has another encoding than it says, or is no text.
        InputError: the file cannot be opened, or is larger than the limits allow.
    """
    return html_text(decoded(read_whole(file.path), file, html=True), tally)


def html_text(html: str, tally: Tally) -> FileText:
    """Return the title and text of an HTML page. `tally` counts the elements that are left out."""
    # Here: a build without HTML does not load the parser.
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(html)
    heading = page.css_first("h1")
    named = page.css_first("title")
    title = fold(heading.text()) if heading is not None else fold(named.text()) if named is not None else ""
    # Pages name the element that holds their text; all around it is navigation.
    root = page.css_first("main") or page.body
    if root is None:
        return FileText(title, "")
    text = _text(root, tally)
    # The title would stand in the prompt twice.
    return FileText(title, text.removeprefix(f"# {title}").lstrip("\n") if heading is not None else text)


def _text(root: LexborNode, tally: Tally) -> str:
    """Return the text below an element."""
    parts: list[str] = []
    # Nodes still to be written, and the ends of elements, as (node, text behind it). A stack, because a page
    # may nest deeper than Python recurses.
    stack: list[tuple[LexborNode | None, str]] = [(root, "")]
    preformatted = 0
    while stack:
        node, end = stack.pop()
        if node is None:
            preformatted -= end == "\n```\n\n"
            parts.append(end)
            continue
        tag = node.tag or ""
        if tag == "-text":
            found = node.text_content or ""
            parts.append(found if preformatted else _SPACE.sub(" ", found))
            continue
        if tag in _LEFT_OUT or "hidden" in node.attributes:
            tally.read["html_elements_left_out"] += 1
            continue
        if tag.startswith("-") or tag == "_comment":
            continue
        before, after = _around(tag, node)
        if tag in ("td", "th") and node.css_first("table") is None:
            # A row is one line, so a cell has no line breaks. A cell with a table only lays out the page.
            parts.append(before + fold(node.text(separator=" ")))
            continue
        parts.append(before)
        preformatted += tag == "pre"
        stack.append((None, after))
        children = []
        child = node.child
        while child is not None:
            children.append(child)
            child = child.next
        stack.extend((child, "") for child in reversed(children))
    return _tidied("".join(parts))


def _around(tag: str, node: LexborNode) -> tuple[str, str]:
    """Return what stands before and behind an element's content."""
    if tag in _HEADINGS:
        return "\n\n" + _HEADINGS[tag], "\n\n"
    if tag == "br":
        return "\n", ""
    if tag == "li":
        return "\n- ", ""
    if tag == "tr":
        return "\n", ""
    if tag in ("td", "th"):
        return (" | " if _follows_cell(node) else ""), ""
    if tag == "pre":
        return "\n\n```\n", "\n```\n\n"
    if tag in ("ul", "ol") and node.parent is not None and node.parent.tag == "li":
        return "", ""
    if tag in _BLOCKS:
        return "\n\n", "\n\n"
    return "", ""


def _follows_cell(node: LexborNode) -> bool:
    before = node.prev
    while before is not None and before.tag not in ("td", "th"):
        before = before.prev
    return before is not None


def _tidied(text: str) -> str:
    """Return a text without blanks around its line breaks, but for preformatted lines."""
    # Every second part is preformatted.
    parts = text.split("\n```\n")
    prose = [re.sub(r"\n{3,}", "\n\n", _LINE_SPACE.sub("\n", part)).strip("\n ") for part in parts[::2]]
    blocks = [f"```\n{part}\n```" for part in parts[1::2]]
    return "\n\n".join(part for pair in zip_longest(prose, blocks) for part in pair if part)
