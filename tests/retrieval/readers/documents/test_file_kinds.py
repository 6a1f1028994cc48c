"""Files that are one document each: HTML, DOCX, EPUB, PDF, source code; what they leave out is counted."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Tally
from retrieval.readers.documents.kinds.html import html_text
from retrieval.readers.documents.kinds.pdf import whole_words
from tests.retrieval.read_all import read_documents, read_questions

Write = Callable[[str, str], Path]

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PARTS = "http://schemas.openxmlformats.org/package/2006"


def read(path: Path) -> tuple[Document, Tally]:
    tally = Tally()
    (document,) = read_documents([SourceFile(path, path.name)], tally).values()
    return document, tally


def test_html_keeps_structure_and_leaves_menus_out() -> None:
    tally = Tally()
    page = html_text(
        "<title>Shop</title><nav>Home</nav><h1>The  lamp</h1><p>It takes <b>a bulb</b>\nof 40 &lt; 60 W."
        "<br>Next"
        "<ul><li>one<li>two<ul><li>in</ul></ul><h2>Prices</h2><table><tr><th>Item<th>Euro<tr><td>a<p>b</p><td>2"
        "</table><pre>def f():\n    return 1</pre><script>x()</script><footer>end</footer>",
        tally,
    )
    assert page.title == "The lamp"
    assert page.text == (
        "It takes a bulb of 40 < 60 W.\nNext\n\n- one\n- two\n- in\n\n## Prices\n\nItem | Euro\na b | 2\n\n"
        "```\ndef f():\n    return 1\n```"
    )
    assert tally.read["html_elements_left_out"] == 3


@pytest.mark.parametrize(
    ("html", "title", "text"),
    [
        ("", "", ""),
        ("<p>only</p>", "", "only"),
        ("<title> A  b </title>x", "A b", "x"),
        ("<main><p>in</p></main><p>out</p>", "", "in"),
        ("<div>" * 5000 + "deep", "", "deep"),
        ("no markup & all", "", "no markup & all"),
    ],
)
def test_any_html_is_read(html: str, title: str, text: str) -> None:
    found = html_text(html, Tally())
    assert (found.title, found.text) == (title, text)


def test_html_names_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.HTML"
    path.write_bytes('<meta charset="iso-8859-1"><p>Käse</p>'.encode("latin-1"))
    assert read(path)[0].text == "Käse"
    declared = '<?xml version="1.0" encoding="windows-1252"?><html><body><p>Käse’s</p></body></html>'
    path.write_bytes(declared.encode("cp1252"))
    assert read(path)[0].text == "Käse’s"
    path.write_bytes("<p>Käse</p>".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.HTML:1: not UTF-8; save the file as UTF-8"):
        read(path)


def docx(path: Path, body: str) -> Path:
    types = (
        f'<Types xmlns="{PARTS}/content-types"><Default Extension="rels" ContentType="application/vnd.openxml'
        'formats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType="'
        'application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
    )
    relations = (
        f'<Relationships xmlns="{PARTS}/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats'
        '.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", types)
        archive.writestr("_rels/.rels", relations)
        archive.writestr(
            "word/document.xml", f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
        )
    return path


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_docx_has_paragraphs_and_tables(tmp_path: Path) -> None:
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("Item", "Euro"))
    path = docx(tmp_path / "lamp.docx", paragraph("The lamp.") + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>")
    document, tally = read(path)
    assert (document.title, document.text) == ("lamp", "The lamp.\n\nItem | Euro")
    assert not tally.dropped


ENCRYPTED = "<e><d><CipherReference URI='in/{}%20page.xhtml'/></d></e>"


def epub(path: Path, held: str = "abc", encrypted: str = "") -> Path:
    """Write a book of the pages b and a, with c beside the text; `held` has the pages that are there."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "META-INF/container.xml", '<c><rootfiles><rootfile full-path="in/b.opf"/></rootfiles></c>'
        )
        if encrypted:
            archive.writestr("META-INF/encryption.xml", ENCRYPTED.format(encrypted))
        items = "".join(f'<item id="{name}" href="{name}%20page.xhtml"/>' for name in "abc")
        spine = '<itemref idref="b"/><itemref idref="a"/><itemref idref="c" linear="no"/>'
        archive.writestr(
            "in/b.opf",
            '<package xmlns:dc="d"><metadata><dc:title>The book</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        )
        for name in held:
            archive.writestr(
                f"in/{name} page.xhtml", f"<html><body><h1>Ch {name}</h1><p>Text {name}.</p></body></html>"
            )
    return path


def test_epub_pages_come_in_reading_order(tmp_path: Path) -> None:
    document, tally = read(epub(tmp_path / "book.epub"))
    assert (document.title, document.text) == ("The book", "# Ch b\n\nText b.\n\n# Ch a\n\nText a.")
    assert +tally.read == {"documents": 1, "pages": 2}


def test_a_book_that_lacks_a_page_is_read_without_it(tmp_path: Path) -> None:
    document, tally = read(epub(tmp_path / "book.epub", held="a"))
    assert document.text == "# Ch a\n\nText a."
    assert +tally.read == {"documents": 1, "pages": 1, "pages_that_are_not_in_the_book": 1}
    with pytest.raises(InputError, match=r"book\.epub: not a readable EPUB book .*none of its 2 pages"):
        read(epub(tmp_path / "book.epub", held=""))


def test_a_book_with_encrypted_pages_is_named_so(tmp_path: Path) -> None:
    # Fonts that are encrypted leave the book readable.
    assert read(epub(tmp_path / "book.epub", encrypted="font"))[0].text.startswith("# Ch b")
    with pytest.raises(InputError, match=r"book\.epub: its pages are encrypted \(DRM\)"):
        read(epub(tmp_path / "book.epub", encrypted="a"))


BROKEN = [
    ("a.docx", b"no archive", "document_not_a_docx"),
    ("a.docx", b"PK\x03\x04 cut", "document_not_a_docx"),
    ("a.epub", b"no archive", "document_not_an_epub"),
    ("a.pdf", b"no PDF", "document_not_a_pdf"),
    ("a.pdf", b"%PDF-1.4\n1 0 obj\n<< /Type", "document_not_a_pdf"),
    ("a.txt", b"Caf\xe9", "document_of_another_encoding"),
    ("a.txt", "Café".encode("utf-16"), "document_of_another_encoding"),
    ("a.html", "<p>Café".encode("utf-32"), "document_of_another_encoding"),
    ("a.py", b"\x89PNG\r\n", "document_of_another_kind_than_its_name"),
    ("a.md", b"\x1f\x8bcut", "document_damaged"),
    ("a.md", b"PK\x03\x04cut", "document_damaged"),
    ("a.html", b'<meta charset="klingon"><p>x', "document_of_another_encoding"),
    ("a.html", b"<p>Caf\xe9", "document_of_another_encoding"),
]


@pytest.mark.parametrize(("name", "data", "reason"), BROKEN)
def test_files_that_cannot_be_read_are_counted_beside_others(
    write: Write, name: str, data: bytes, reason: str
) -> None:
    good, bad = write("b.md", "# B\nText."), write(name, "")
    bad.write_bytes(data)
    tally = Tally()
    files = [SourceFile(bad, name), SourceFile(good, "b.md")]
    assert list(read_documents(files, tally)) == ["b.md"]
    assert tally.as_dict() == {"read": {"documents": 2}, "dropped": {reason: 1}}


def test_accents_may_be_apart_from_their_letters(write: Write) -> None:
    # macOS names files so; what is typed has the accents in the letters.
    apart = unicodedata.normalize("NFD", "café.md")
    files = [SourceFile(write(apart, "# Café\nIt is open."), apart)]
    question = {"id": "q", "document_id": "café.md", "question": "Open?", "answers": ["open"]}
    for name in ("café.md", apart):
        asked = write("q.jsonl", json.dumps({**question, "document_id": name}, ensure_ascii=False))
        documents = read_documents(files, Tally())
        assert list(documents) == ["café.md"]
        (found,) = read_questions([SourceFile(asked, "q.jsonl")], documents, Tally())
        assert found.context_id == "café.md"


@pytest.mark.parametrize(("name", "data", "reason"), BROKEN)
def test_files_that_cannot_be_read_end_a_build_that_has_no_others(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    files = [SourceFile(tmp_path / one, one) for one in (name, f"b{name}")]
    for file in files:
        file.path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}.*\(none of 2 files can be read\)"):
        read_documents(files, Tally())
    with pytest.raises(InputError, match=rf"{name}\b.*; \w+|{name}.* is "):
        read_documents(files[:1], Tally())


def test_source_code_and_rst(write: Write) -> None:
    code = "def f(x):\n    return x\n"
    document, _ = read(write("f.py", code))
    assert (document.title, document.text) == ("f.py", code.strip())
    document, _ = read(write("d.rst", "The stove\n=========\n\nIt costs 200 euro.\n"))
    assert (document.title, document.text) == ("The stove", "It costs 200 euro.")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a com-\nputer", "a computer"),
        ("well-\nknown and well-known", "well-known and well-known"),
        ("co-\noperate, cooperate", "cooperate, cooperate"),
        ("Anna-\nMaria", "Anna-Maria"),
        ("of\ufb01ce \ufb02ow so\u00ad\nft", "office flow soft"),
        ("1990-\n2000 and - \nb", "1990-\n2000 and - \nb"),
    ],
)
def test_words_of_pdfs_become_whole(text: str, whole: str) -> None:
    assert whole_words(text)[0] == whole
