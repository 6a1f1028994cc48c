"""Files of decisions are read or refused with one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jora_core.base.errors import InputError
from retrieval.synthesis.decisions import Decision, read_decisions


def test_csv_and_json_lines(tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_text(
        '\ufeffid,decision,question,answer\na,accept,,\nb,Edit,"Who, then?",Ann\nc,,,\nd,refuse,,\n'
    )
    assert read_decisions(table) == {
        "a": Decision("accept"),
        "b": Decision("edit", "Who, then?", "Ann"),
        "d": Decision("refuse"),
    }
    lines = tmp_path / "d.jsonl"
    lines.write_text(
        '{"id": "a", "decision": "refuse"}\n\n{"id": "b", "decision": "edit", "question": "Who?"}\n'
    )
    assert read_decisions(lines) == {"a": Decision("refuse"), "b": Decision("edit", "Who?", None)}
    assert read_decisions(None) == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.csv", "id,verdict\na,accept\n", "expected the columns id and decision"),
        ("d.csv", "id,decision\na,maybe\n", "row 1: decision 'maybe'; expected accept, edit, refuse"),
        ("d.csv", "id,decision\na,accept\na,refuse\n", "row 2: a is decided twice"),
        ("d.csv", "id,decision,question\na,edit,\n", "row 1: an edited question needs its text"),
        ("d.csv", "id,decision\n,accept\n", "row 1: id is missing"),
        ("d.jsonl", "{\n", "row 1: no JSON"),
        ("d.jsonl", "[]\n", "row 1: expected an object"),
        ("d.xlsx", "", "expected a .csv or .jsonl file"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        read_decisions(path)
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_decisions(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv"):
        read_decisions(tmp_path / "none.csv")
