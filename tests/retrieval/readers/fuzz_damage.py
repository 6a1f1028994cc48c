"""How valid files are written in every form, and how they are damaged."""

from __future__ import annotations

import copy
import csv
import html
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.pdf_page import pdf_page

#: What may stand where something else was expected.
JUNK: list[Any] = [
    *(None, True, 0, -1, 7, 10**30, 10**400, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "a\nb\tc",
        "nul\x00",
        "half \ud83d",
        "\u202eflip",
        "9" * 400,
        "2024-99-99",
        "<b>&#55357;",
    ),
    *([], {}, [None], [[]], ["x", 3], {"a": {"b": [1]}}, {"text": "x"}, {"id": {"id": []}}, [["t", ["s"]]]),
]
BYTES = [
    b"\xff\xfe",
    b"\x00",
    b"\xed\xa0\x80",
    b"{",
    b"]",
    b'"',
    b"\n",
    b"\r",
    b"\t",
    b"," * 9,
    b"9" * 5000,
    b"[" * 3000,
]

Change = tuple[str, float, int]
VALUE_CHANGES = ("replace", "delete", "rename", "repeat", "wrap")
BYTE_CHANGES = ("cut", "insert", "overwrite", "drop")


def change_value(value: Any, change: Change) -> Any:
    """A copy of a JSON value with one thing in it changed: what, where (0 to 1), with which junk."""
    how, place, junk = change
    value = copy.deepcopy(value)
    spots = list(_spots(value))
    if not spots:
        return JUNK[junk % len(JUNK)]
    parent, key = spots[min(int(place * len(spots)), len(spots) - 1)]
    if how == "replace":
        parent[key] = copy.deepcopy(JUNK[junk % len(JUNK)])
    elif how == "delete":
        del parent[key]
    elif how == "wrap":
        parent[key] = [parent[key]]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent["other"] = parent.pop(key) if how == "rename" else copy.deepcopy(parent[key])
    return value


def _spots(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _spots(child)


def change_bytes(data: bytes, change: Change) -> bytes:
    """A file's bytes with one thing changed."""
    how, place, junk = change
    at = int(place * len(data))
    some = BYTES[junk % len(BYTES)]
    if how == "cut":
        return data[:at]
    if how == "insert":
        return data[:at] + some + data[at:]
    if how == "overwrite":
        return data[:at] + some[:8] + data[at + len(some[:8]) :]
    return data[:at] + data[at + 1 + junk :]


def damage(rows: Any, pack: Callable[[Any], bytes], changes: list[Change]) -> bytes:
    """A file of `rows`, changed by value as long as the changes are such, then by bytes."""
    for change in changes:
        if change[0] in VALUE_CHANGES:
            rows = change_value(rows, change)
    data = pack(rows)
    for change in changes:
        if change[0] in BYTE_CHANGES:
            data = change_bytes(data, change)
    return data


def lines(rows: Any) -> bytes:
    items = rows if isinstance(rows, list) else [rows]
    return "".join(json.dumps(row) + "\n" for row in items).encode()


def pretty(rows: Any) -> bytes:
    return json.dumps(rows, indent=1).encode()


def parquet(rows: Any) -> bytes:
    """Columns as far as the rows agree on a type, as texts where they do not."""
    table = {}
    dicts = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for name in dict.fromkeys(key for row in dicts for key in row):
        column = [row.get(name) for row in dicts]
        try:
            table[str(name)] = pa.array(column)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            table[str(name)] = pa.array([ascii(value) for value in column])
    out = io.BytesIO()
    pq.write_table(pa.table(table), out)
    return out.getvalue()


def tar_zst(rows: Any) -> bytes:
    data, out = lines(rows), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        about = tarfile.TarInfo("pol.ndjson")
        about.size = len(data)
        archive.addfile(about, io.BytesIO(data))
    return zstandard.compress(out.getvalue())


def as_text(rows: Any) -> bytes:
    """Rows that are lines (or lists of fields) of a text file."""
    items = rows if isinstance(rows, list) else [rows]
    joined = ("\t".join(map(_plain, row)) if isinstance(row, list) else _plain(row) for row in items)
    return "\n".join(joined).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def pdf(rows: Any) -> bytes:
    """A PDF of one page with a line of text a row."""
    items = rows if isinstance(rows, list) else [rows]
    text = "".join(f"({_plain(row)[:80]}) Tj T* " for row in items).encode("latin-1", "replace")
    return pdf_page(b"BT /F1 12 Tf 14 TL 72 700 Td " + text + b"ET")


def zipped(name: str) -> Callable[[Any], bytes]:
    """A zip archive of one JSON file of this name."""

    def pack(rows: Any) -> bytes:
        return _archive([(name, pretty(rows))])

    return pack


def _archive(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            # A fixed time, so that the same cases are run every time.
            archive.writestr(zipfile.ZipInfo(name, (2024, 5, 1, 0, 0, 0)), data)
    return out.getvalue()


def arrow(rows: Any) -> bytes:
    """The table of `parquet`, as Arrow writes it to a file."""
    table, out = pq.read_table(io.BytesIO(parquet(rows))), io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def sheet(rows: Any) -> bytes:
    """An Excel workbook of lines that semicolons part into cells."""
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book, out = Workbook(), io.BytesIO()
    page = book.worksheets[0]
    for cells in csv.reader(as_text(rows).decode("utf-8", "replace").splitlines(), delimiter=";"):
        page.append([ILLEGAL_CHARACTERS_RE.sub("", cell) for cell in cells])
    book.save(out)
    return out.getvalue()


def _paragraphs(rows: Any) -> list[str]:
    items = rows if isinstance(rows, list) else [rows]
    texts = (_plain(row).encode("utf-16", "surrogatepass").decode("utf-16", "replace") for row in items)
    return [html.escape("".join(sign for sign in text if sign.isprintable())) for text in texts]


def docx(rows: Any) -> bytes:
    """A Word document with a paragraph a row."""
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    package = "http://schemas.openxmlformats.org/package/2006"
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in _paragraphs(rows))
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
    }
    return _archive([(name, text.encode()) for name, text in files.items()])


def epub(rows: Any) -> bytes:
    """A book of one page with a paragraph a row."""
    body = "".join(f"<p>{text}</p>" for text in _paragraphs(rows))
    files = {
        "META-INF/container.xml": '<c><rootfiles><rootfile full-path="b.opf"/></rootfiles></c>',
        "b.opf": '<package><manifest><item id="a" href="a.xhtml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>',
        "a.xhtml": f"<html><body>{body}</body></html>",
    }
    return _archive([(name, text.encode()) for name, text in files.items()])


def rows_in_lines(data: bytes) -> int | None:
    """How many rows a file of JSON lines has, by its line ends alone; None if it is no such file."""
    if b"\n" not in data or data.lstrip().startswith(b"[") or data.startswith((b"{\n", b"{\r")):
        return None
    return sum(1 for line in data.split(b"\n") if line.strip())


def rows_in_list(data: bytes) -> int | None:
    """How many items a JSON list has, by the parser of the standard library; None if it is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return len(found) if isinstance(found, list) else None


def rows_in_parquet(data: bytes) -> int | None:
    """How many rows a Parquet file has, by its footer; None if it is none."""
    try:
        return pq.read_metadata(io.BytesIO(data)).num_rows
    except (pa.ArrowException, OSError):
        return None
