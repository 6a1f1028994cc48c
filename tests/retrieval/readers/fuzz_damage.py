"""How valid files are written in every form, and how they are damaged."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

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
    stream = b"BT /F1 12 Tf 14 TL 72 700 Td " + text + b"ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, trailer)
