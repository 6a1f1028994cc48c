"""Damaged files of every format: records, or one line that says what is wrong; nothing is lost uncounted.

By default about 500 cases of all formats together; `JORA_FUZZ_CASES=10000` sets another number.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jora_core.base.errors import InputError

from .fuzz_cases import FORMATS, Format
from .fuzz_damage import BYTE_CHANGES, BYTES, JUNK, VALUE_CHANGES, damage

CHANGES = st.lists(
    st.tuples(
        st.sampled_from((*VALUE_CHANGES, *BYTE_CHANGES)),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, max(len(JUNK), len(BYTES)) - 1),
    ),
    min_size=1,
    max_size=3,
)


#: Cases of all formats together; each has its share.
CASES = int(os.environ.get("JORA_FUZZ_CASES", "500"))
SHARE = CASES / sum(kind.cases for kind in FORMATS)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_whole_files_are_read_whole(kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    data = kind.pack(kind.rows)
    (read, given_back, dropped), found = kind.read(put(kind, data, tmp_path))
    assert read == given_back + dropped and given_back > 0 and found
    assert kind.present is None or kind.present(data) == read


@pytest.mark.timeout(max(300, CASES // 5))
@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_damaged_files_give_records_or_one_line(
    kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    outcomes = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        @settings(
            max_examples=max(8, round(kind.cases * SHARE)),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(CHANGES)
        def check(changes: list[tuple[str, float, int]]) -> None:
            data = damage(kind.rows, kind.pack, changes)
            path = put(kind, data, folder)
            try:
                (read, given_back, dropped), found = kind.read(path)
            except InputError as error:
                text = str(error)
                assert "\n" not in text and len(text) < 2000
                assert str(folder) in text or path.name in text  # a zip archive is unpacked elsewhere
                text.encode()
                outcomes["refused"] += 1
                return
            assert read == given_back + dropped
            present = kind.present(data) if kind.present else None
            assert present in (None, read)
            for piece in strings(found):
                piece.encode()  # what cannot be written as UTF-8 would break the records file later
            outcomes["read"] += 1

        check()
    assert sum(outcomes.values()) > 0
    # With few cases, all may end in the same way.
    assert sum(outcomes.values()) < 100 or min(outcomes.values()) > 0, outcomes


def put(kind: Format, data: bytes, folder: Path) -> Path:
    """Writes the file and those beside it; the path of the first."""
    for name, content in (*kind.beside, (kind.name, data)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / kind.name


def strings(value: Any) -> Iterator[str]:
    """Every text in what a reader gave."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from strings(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)
