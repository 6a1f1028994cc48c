"""The separator of a CSV table, as both readers of CSV find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jora_core.base.errors import InputError
from retrieval.readers.files.csv_dialect import find_separator, named_separator
from retrieval.readers.files.tables import any_rows
from retrieval.readers.tables.csv_tables import read_csv

TABLES = {
    "comma": ("a,b\n1,2\n", [["a", "b"], ["1", "2"]]),
    "semicolon beside decimal commas": ("a;b\n1,5;2,5\n", [["a", "b"], ["1,5", "2,5"]]),
    "tab": ("a\tb\n1\t2\n", [["a", "b"], ["1", "2"]]),
    "pipe": ("a|b\n1|2\n", [["a", "b"], ["1", "2"]]),
    "more cells win": ("Name, first|x|y\nDoe, A|1|2\n", [["Name, first", "x", "y"], ["Doe, A", "1", "2"]]),
    "one column": ("a\n1\n2\n", [["a"], ["1"], ["2"]]),
    "one column with semicolons": ("a\none; two\n", [["a"], ["one; two"]]),
    "one column of texts with commas": (
        "text\nHello, world\nwell\na, b, c\n",
        [["text"], ["Hello, world"], ["well"], ["a, b, c"]],
    ),
    "one column of quoted texts": ('text\n"Hello, world"\n"a; b"\n', [["text"], ["Hello, world"], ["a; b"]]),
    "quoted separators": ('"a;b","c"\n"1;2","3,4"\n', [["a;b", "c"], ["1;2", "3,4"]]),
    "quoted header": ('"a";"b"\n"1";"2"\n"3";"4,5"\n', [["a", "b"], ["1", "2"], ["3", "4,5"]]),
    "newline in a cell": ('a;b\n"1\n2";3\n', [["a", "b"], ["1\n2", "3"]]),
    "named": ("sep=;\r\na;b\r\n1,5;2\r\n", [["a", "b"], ["1,5", "2"]]),
    "named in capitals": ("SEP=|\na|b,c\n1|2\n", [["a", "b,c"], ["1", "2"]]),
    "returns alone": ("a;b\r1;2\r", [["a", "b"], ["1", "2"]]),
    "blank lines": ("\n \na;b\n\n1;2\n", [["a", "b"], ["1", "2"]]),
}


@pytest.mark.parametrize("name", TABLES)
def test_both_readers_find_the_same_cells(name: str, tmp_path: Path) -> None:
    text, expected = TABLES[name]
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    rows = [row for _, _, row in any_rows(path)]
    assert [list(rows[0]), *(list(row.values()) for row in rows)] == expected
    # A line of blanks is a row of a table.
    assert [row for row in read_csv(path)[0] if row != [" "]] == expected


@pytest.mark.parametrize(
    ("text", "separator"),
    [("a,b,c\n1,2\n", ","), ("a;b;c\n1;2\n", ";"), ("", ","), ("a\n", ","), ("a\t,\n", ",")],
)
def test_the_separator_is_found(text: str, separator: str) -> None:
    assert find_separator(text.split("\n")) == separator


def test_the_ending_of_the_file_decides_between_equals() -> None:
    assert find_separator(["a\tb,c", "1\t2,3"]) == ","
    assert find_separator(["a\tb,c", "1\t2,3"], first="\t") == "\t"


def test_a_title_above_the_table_is_no_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("My table\na,b\n1,2\n")
    with pytest.raises(InputError, match=r"t\.csv:2: 2 cells, but the header has 1"):
        list(any_rows(path))


@pytest.mark.parametrize("line", ["sep=", "sep=;;", "a;b", "my sep=;", ""])
def test_other_first_lines_name_no_separator(line: str) -> None:
    assert named_separator(line) is None
