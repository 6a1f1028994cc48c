"""Instruction files as people save them: the lines end where the file says, not where a text has U+2028."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jora_core.base.errors import InputError
from jora_core.data.instruction_files import read_alpaca

ROWS = [{"instruction": f"say\u2028{i}\u0085", "input": "", "output": f"{i}\u2029."} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\ufeff" + LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.replace("\n", "\n\ufeff"),
        "\ufeff" + json.dumps(ROWS, ensure_ascii=False),
    ],
)
def test_separators_inside_texts_end_no_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_bytes(text.encode())
    assert [record.output for record in read_alpaca(path)] == [row["output"] for row in ROWS]


def test_deep_json_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"alpaca\.json, line 1: unusable JSON"):
        read_alpaca(path)
