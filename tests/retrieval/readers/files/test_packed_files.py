"""Files as people save them: packed in any way, named wrongly, joined, hostile. The content decides."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jora_core.base.errors import InputError
from retrieval.corpus.reading_limits import ReadingLimits, limited_to
from retrieval.corpus.source_files import SourceFile, survey_files
from retrieval.corpus.unpacking import open_binary, read_whole
from retrieval.readers.files.rows import rows
from retrieval.readers.files.tables import Contents, any_rows

ROWS = [{"id": f"d{i}", "text": f"a\u2028b\u0085c {i}"} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zipped(data: bytes, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("docs.jsonl",):
            archive.writestr(name, data)
    return buffer.getvalue()


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "zip": zipped,
}


def read(path: Path) -> list[dict[str, Any]]:
    return [row for _, _, row in rows(SourceFile(path, path.name), ("id", "text"), (), "rows")]


def save(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pack", PACKS)
def test_the_first_bytes_decide_not_the_name(pack: str, tmp_path: Path) -> None:
    data = PACKS[pack](LINES)
    for name in (f"docs.jsonl.{pack}", "docs.jsonl", "docs.jsonl.gz"):
        assert read(save(tmp_path, name, data)) == ROWS
    cut = save(tmp_path, f"cut.jsonl.{pack}", data[:-9])
    with pytest.raises(InputError, match=r"cut\.jsonl.*cannot be read.*; the file is cut short"):
        read(cut)


def test_a_plain_file_with_a_packed_name_is_read_and_rubbish_is_not(tmp_path: Path) -> None:
    assert read(save(tmp_path, "docs.jsonl.gz", LINES)) == ROWS
    with pytest.raises(InputError, match="not a gzip file"):
        read(save(tmp_path, "bad.jsonl.gz", b"\x00\x01\x02" + LINES))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("docs.json", LINES),
        ("docs.jsonl", json.dumps(ROWS).encode()),
        ("docs.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("docs.ndjson", b"".join(json.dumps(row, indent=1).encode() + b"\n" for row in ROWS)),
        ("docs.json", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
        ("docs.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\xef\xbb\xbf")),
        ("docs.json", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\xef\xbb\xbf")),
        ("docs.jsonl", LINES.replace(b"\n", b"\r")),
        ("DOCS.JSONL", b"\n\n" + LINES.replace(b"\n", b"\n \t\n")),
        ("docs.json", json.dumps(ROWS[:1]).encode() + b"\n" + json.dumps(ROWS[1:]).encode()),
    ],
)
def test_lines_lists_and_joined_files_under_any_name(name: str, data: bytes, tmp_path: Path) -> None:
    assert read(save(tmp_path, name, data)) == ROWS


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("d.jsonl", '{"id": 1}\n'.encode("utf-16"), "UTF-16.*UTF-8"),
        ("d.jsonl", '{"id": "é"}\n'.encode("latin-1"), r"d\.jsonl:1: not UTF-8"),
        ("d.jsonl", gzip.compress(gzip.compress(LINES)), "packed twice"),
        ("d.jsonl", b"7z\xbc\xaf\x27\x1c rest", "7-Zip archive; unpack it"),
        ("d.json", b"id,text\n1,x\n", r"looks like a table.*\.csv"),
        ("d.jsonl", b"id,text\n1,x\n", r"looks like a table.*\.csv"),
        ("d.json", b"<!DOCTYPE html><html>", "is HTML"),
        ("d.json", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("d.jsonl", zipped(b"x", "xl/workbook.xml", "[Content_Types].xml"), r"looks like \.xlsx"),
        ("d.jsonl", zipped(b"x", "a.jsonl", "b.jsonl"), "zip archive of 2 files"),
        ("d.json", b"", "empty"),
        ("d.json", b"[" * 100_000, "nest too deep"),
        ("d.jsonl", b'{"a":' * 100_000, "nest too deep"),
        ("d.jsonl", b'{"id": ' + b"9" * 5000 + b"}", "unusable JSON"),
    ],
    # Packed data hold the time of packing, and all workers of pytest-xdist must collect the same names.
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_other_files_are_named_with_the_way_out(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(save(tmp_path, name, data))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    path = save(tmp_path, "d.jsonl", b'{"id": "1", "text": "x", "time": NaN}')
    assert read(path)[0]["time"] is None


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz", "zst", "zip"])
def test_a_pack_stops_at_its_limit(pack: str, tmp_path: Path) -> None:
    # More than is always allowed would take seconds to make in each form, so the bound itself is lowered.
    data = PACKS[pack](b" " * (4 << 20))
    path = save(tmp_path, f"bomb.jsonl.{pack}", data)
    limits = ReadingLimits(unpacked_ratio=3)
    with pytest.MonkeyPatch.context() as patch, limited_to(limits):
        patch.setattr("retrieval.corpus.reading_limits.ALWAYS_ALLOWED", 1 << 20)
        with pytest.raises(InputError, match=r"raise context\.limits\.unpacked_ratio"):
            read(path)
        patch.setenv("JORA_CACHE", str(tmp_path / "cache"))
        if pack == "zip":
            with pytest.raises(InputError, match=r"raise context\.limits\.unpacked_ratio"):
                survey_files(str(path), (".jsonl",), "qa.source")


@pytest.mark.parametrize("name", ["line.jsonl", "value.json", "text.md"])
def test_one_giant_value_stops_at_its_limit(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, name, b'{"id": "' + b"x" * (3 << 20) + b'"}')
    with limited_to(ReadingLimits(value_mb=1)), pytest.raises(InputError, match=r"context\.limits\.value_mb"):
        if name == "text.md":
            read_whole(path)
        else:
            read(path)


def test_zip_archives_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    names = (
        "in/a.jsonl",
        "in/B.JSONL",
        "../../out.jsonl",
        "__MACOSX/in/._a.jsonl",
        "in/.hidden.jsonl",
        "in/p.png",
    )
    path = save(tmp_path, "src/docs.zip", zipped(LINES, *names))
    for source, before in ((path, ""), (path.parent, "docs.zip/")):
        survey = survey_files(str(source), (".jsonl",), "qa.source")
        assert [file.name for file in survey.files] == [
            f"{before}{n}" for n in ("in/B.JSONL", "in/a.jsonl", "out.jsonl")
        ]
        assert survey.left_out == {"file_hidden": 2, "file_of_other_kind.png": 1}
        assert all(read(file.path) == ROWS for file in survey.files)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(InputError, match="not a readable zip archive"):
        survey_files(str(save(tmp_path, "bad.zip", b"PK\x03\x04rest")), (".jsonl",), "qa.source")


def test_zstd_frames_in_a_row(tmp_path: Path) -> None:
    half = len(LINES) // 2
    data = zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:])
    with open_binary(save(tmp_path, "two.zst", data)) as handle:
        assert handle.read() == LINES


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("a.jsonl", '{"id": 1, "text": "a"}\n{"id": 2, "text": "b", "text": "c"}\n', "a.jsonl:2"),
        ("a.json", '[\n{"id": 1},\n{"id": 2, "deep": [{"x": 1, "x": 2}]}\n]', "a.json:3"),
        ("a.json", '{\n"data": 1,\n"data": 2,\n"rows": [{"id": 1}]}', "a.json:3"),
        ("a.json", '{"id": 1}\n{"id": 2, "id": 3}', "a.json:2"),
    ],
)
def test_a_field_with_two_values_is_refused_with_its_line(
    name: str, data: str, place: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(data)
    with pytest.raises(InputError, match=rf"{place}: .* is twice in one object, with different values"):
        list(any_rows(path, Contents(keys=("rows", "")) if '"rows"' in data else Contents()))


def test_a_field_that_is_repeated_with_its_value_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "x": [NaN], "x": [null], "id": 1}\n')
    assert [value for _, _, value in any_rows(path)] == [{"id": 1, "x": [None]}]
