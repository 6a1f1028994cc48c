"""Compare libraries that read documents on ten made files: what they keep, and which lines and menus.

    python tests/benchmarks/readers/document_libraries.py --python OTHER/bin/python --json out.json

`OTHER` is an environment with the other libraries, which are no dependencies of the project:
`pip install 'markitdown[docx,pdf]' trafilatura lxml_html_clean pypdfium2`. Without it, only the project's
readers are scored. Each file has facts that a reader should keep, lines that should stay lines (rows of
tables, code), and menus that no question is about.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_PARTS = "http://schemas.openxmlformats.org/package/2006"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
_MENU = "<nav><a href='/'>Startpage</a> <a href='/shop'>Shopwindow</a></nav><script>var tracker = 1</script>"
_FOOT = "<footer>Imprint of the makers</footer>"
_CODE = "def price(x):\n    return 2 * x"


@dataclass(frozen=True)
class Sample:
    """A file and what a reader should make of it.

    Attributes:
        name: name of the file.
        data: its bytes.
        facts: texts that should be there, in single spaces.
        lines: regular expressions, each of which should match within one line, or code with its lines.
        noise: texts that should not be there.
    """

    name: str
    data: bytes
    facts: tuple[str, ...]
    lines: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()


def _docx(body: str) -> bytes:
    types = (
        f'<Types xmlns="{_PARTS}/content-types"><Default Extension="rels" ContentType="application/'
        'vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
    )
    relations = f'<Relationship Id="r1" Type="{_OFFICE}" Target="word/document.xml"/>'
    return _zip(
        {
            "[Content_Types].xml": types,
            "_rels/.rels": f'<Relationships xmlns="{_PARTS}/relationships">{relations}</Relationships>',
            "word/document.xml": f'<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>',
        }
    )


def _paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def _row(*cells: str) -> str:
    return "<w:tr>" + "".join(f"<w:tc>{_paragraph(cell)}</w:tc>" for cell in cells) + "</w:tr>"


def _zip(files: dict[str, str]) -> bytes:
    with tempfile.TemporaryFile() as handle:
        with zipfile.ZipFile(handle, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        handle.seek(0)
        return handle.read()


def _epub(*chapters: str) -> bytes:
    names = [f"c{number}.xhtml" for number in range(len(chapters))]
    items = "".join(f'<item id="{n}" href="{n}" media-type="application/xhtml+xml"/>' for n in names)
    spine = "".join(f'<itemref idref="{name}"/>' for name in names)
    page = '<html xmlns="http://www.w3.org/1999/xhtml"><body>{}</body></html>'
    return _zip(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
            '<rootfiles><rootfile full-path="book.opf" media-type="application/oebps-package+xml"/>'
            "</rootfiles></container>",
            "book.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata xmlns:dc="http://'
            f'purl.org/dc/elements/1.1/"><dc:title>Lamps</dc:title></metadata><manifest>{items}</manifest>'
            f"<spine>{spine}</spine></package>",
            **{name: page.format(text) for name, text in zip(names, chapters, strict=True)},
        }
    )


def _pdf(*texts: tuple[int, int, str]) -> bytes:
    """Return a page with texts at places (points from left and bottom)."""
    # Here, because the other interpreter, which only extracts, knows no `tests`.
    from tests.pdf_page import pdf_page

    drawn = "".join(f"BT /F1 11 Tf {x} {y} Td ({text}) Tj ET\n" for x, y, text in texts).encode("latin-1")
    return pdf_page(drawn)


def samples() -> list[Sample]:
    """Return the ten files."""
    table = "<table><tr><th>Item</th><th>Euro</th></tr><tr><td>Lamp</td><td>12</td></tr></table>"
    page = f"<h1>The lamp</h1><p>It takes a bulb of 40 watts.</p><ul><li>red</li><li>green</li></ul>{table}"
    left, right = (
        [(x, 700 - 14 * n, text) for n, text in enumerate(lines)]
        for x, lines in (
            (60, ("The lamp stands", "in the hall and", "shines all day.")),
            (330, ("The radio stands", "in the attic and", "plays all night.")),
        )
    )
    both = [text for pair in zip(left, right, strict=True) for text in pair]
    pages = {
        "page": f"<html><body>{_MENU}<main>{page}<pre>{_CODE}</pre></main>{_FOOT}</body></html>",
        "article": f"<html><body>{_MENU}<div><h1>The stove</h1><p>It burns wood and warms two rooms in an "
        f"hour.</p><p>It weighs 80 kilograms.</p></div><aside>Buy now!</aside>{_FOOT}</body></html>",
        "manual": "<html><body><h2>Switch</h2><dl><dt>on</dt><dd>turn right</dd></dl><ol><li>Open<ol>"
        f"<li>the lid</li></ol></li></ol><pre><code>{_CODE}</code></pre></body></html>",
        "latin": "<html><head><meta charset='iso-8859-1'></head><body><p>Die Küche hat drei Türen.</p></body>"
        "</html>",
    }
    html = {name: text.encode("latin-1") for name, text in pages.items()}
    prices = (("Item", "Euro"), ("Lamp", "12"), ("Radio", "30"))
    listed = [
        (x, 700 - 14 * n, t) for n, row in enumerate(prices) for x, t in zip((60, 200), row, strict=True)
    ]
    letter = ("The kettle is steered by a com-", "puter and boils in four", "minutes.")
    break_in = "<w:p><w:r><w:t>First line</w:t><w:br/><w:t>second line</w:t></w:r></w:p>"
    rows = f"<w:tbl>{_row('Item', 'Euro')}{_row('Lamp', '12')}</w:tbl>"
    chapters = ("<h1>One</h1><p>The lamp is red.</p>", "<h1>Two</h1><p>The radio is old.</p>")
    priced = r"Lamp\W+12"
    menus = ("Shopwindow", "Imprint", "tracker")
    return [
        Sample("page.html", html["page"], ("It takes a bulb of 40 watts.",), (priced, _CODE), menus),
        Sample(
            "article.html",
            html["article"],
            ("It burns wood and warms two rooms", "It weighs 80 kilograms."),
            noise=("Buy now", *menus),
        ),
        Sample("manual.html", html["manual"], ("turn right", "the lid"), (_CODE,)),
        Sample("latin.html", html["latin"], ("Die Küche hat drei Türen.",)),
        Sample(
            "guide.docx", _docx(_paragraph("It takes 40 watts.") + rows), ("It takes 40 watts.",), (priced,)
        ),
        Sample("notes.docx", _docx(break_in), ("First line second line",), (r"^\W*First line\W*$",)),
        Sample("book.epub", _epub(*chapters), ("The lamp is red.", "The radio is old.")),
        Sample(
            "letter.pdf",
            _pdf(*((60, 700 - 14 * n, line) for n, line in enumerate(letter))),
            ("steered by a computer and boils", "boils in four minutes."),
        ),
        Sample("columns.pdf", _pdf(*both), ("in the hall and shines all day.", "in the attic and plays")),
        Sample("prices.pdf", _pdf(*listed), ("Item", "Radio"), (priced, r"Radio\W+30")),
    ]


def _others() -> dict[str, tuple[tuple[str, ...], Callable[[Path], str]]]:
    """Return (endings, reader) of each library of the other environment, which must have all of them."""
    from markitdown import MarkItDown  # pyright: ignore[reportMissingImports]
    from pypdfium2 import PdfDocument  # pyright: ignore[reportMissingImports]
    from trafilatura import extract  # pyright: ignore[reportMissingImports]

    def markitdown(path: Path) -> str:
        return MarkItDown().convert(path).text_content

    def trafilatura(path: Path) -> str:
        # `favor_recall`: by default it returns nothing of pages as short as these.
        return extract(path.read_bytes(), output_format="markdown", favor_recall=True) or ""

    def pypdfium2(path: Path) -> str:
        return "\n".join(page.get_textpage().get_text_range() for page in PdfDocument(path))

    return {
        "markitdown": ((".html", ".docx", ".epub", ".pdf"), markitdown),
        "trafilatura": ((".html",), trafilatura),
        "pypdfium2": ((".pdf",), pypdfium2),
    }


def _ours(path: Path) -> str:
    from retrieval.corpus.source_files import SourceFile
    from retrieval.corpus.types import Tally
    from retrieval.readers.documents.text_files import read_documents

    return "\n".join(found.document.text for found in read_documents(SourceFile(path, path.name), Tally()))


def _extract(folder: Path) -> None:
    """Print the texts of all files of a folder by all libraries of this environment, as JSON."""
    out: dict[str, dict[str, Any]] = {}
    for library, (endings, read) in _others().items():
        for path in sorted(folder.iterdir()):
            if path.suffix not in endings:
                continue
            begun = time.perf_counter()
            try:
                text = read(path)
            except Exception as error:  # the libraries' own, of many kinds; it counts as nothing kept
                text = f"{type(error).__name__}"
            seconds = time.perf_counter() - begun
            out.setdefault(library, {})[path.name] = {"text": text, "seconds": seconds}
    print(json.dumps(out))


def score(sample: Sample, text: str) -> dict[str, int]:
    """Count what a text keeps of a file: facts, lines, and noise."""
    folded = " ".join(text.split())
    kept = sum(
        line in text if "\n" in line else any(re.search(line, one) for one in text.splitlines())
        for line in sample.lines
    )
    return {
        "facts": sum(fact in folded for fact in sample.facts),
        "lines": kept,
        "noise": sum(noise in folded for noise in sample.noise),
    }


def main() -> None:
    """Write the files, read them with all libraries, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="interpreter of the environment with the other libraries")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--extract", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.extract is not None:
        _extract(words.extract)
        return
    found: dict[str, dict[str, Any]] = {"jora": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sample in samples():
            (folder / sample.name).write_bytes(sample.data)
        for sample in samples():
            begun = time.perf_counter()
            text = _ours(folder / sample.name)
            found["jora"][sample.name] = {"text": text, "seconds": time.perf_counter() - begun}
        if words.python:
            command = [words.python, __file__, "--extract", name]
            found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    _report(found, words.json)


def _report(found: dict[str, dict[str, Any]], to: Path | None) -> None:
    from harness import machine, print_table

    rows, results = [], []
    for library, files in found.items():
        for kind in (".html", ".docx", ".epub", ".pdf"):
            own = [sample for sample in samples() if sample.name.endswith(kind) and sample.name in files]
            if not own:
                continue
            counts = [score(sample, files[sample.name]["text"]) for sample in own]
            total = {name: sum(count[name] for count in counts) for name in ("facts", "lines", "noise")}
            of = {name: sum(len(getattr(sample, name)) for sample in own) for name in total}
            shown = {name: f"{total[name]} of {of[name]}" for name in total}
            rows.append({"library": library, "kind": kind, **shown})
            results.append({"library": library, "kind": kind, "counts": total, "of": of})
    print_table(rows)
    if to is not None:
        files = [sample.name for sample in samples()]
        written = {"machine": machine(), "settings": {"files": files}, "results": results, "ratios": {}}
        to.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # retrieval and tests.pdf_page
    main()
