"""Tables with questions by a mapping of columns: every kind of file and form of a table, errors that help."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from openpyxl import Workbook

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.corpus.types import Question, Table, Tally
from retrieval.readers.preview import preview
from retrieval.readers.tables import table_rows
from retrieval.readers.tables.mapped_tables import tables_and_questions, tables_with_questions
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import TablesTask
from retrieval.tasks.tables.inputs import input_files, mapped_sources

CELLS = [["City", "Population"], ["Oslo", 717710], ["Rome | Roma", 2.0], ["Bergen", None]]
WRITTEN = (("Oslo", "717710"), ("Rome | Roma", "2"), ("Bergen", ""))
MARKDOWN = "| City | Population |\n|---|---:|\n| Oslo | 717710 |\n| Rome \\| Roma | 2 |\n| Bergen | |\n"
ROW = {"nr": 7, "ask": "Which city is largest?", "right": ["Oslo"], "caption": "Cities"}
MAPPING = {
    "columns": {"cells": "grid", "title": "caption"},
    "question_columns": {"question": "ask", "answers": "right"},
}


def read(folder: Path, **settings: Any) -> tuple[dict[str, Table], list[Question], Tally]:
    """Read a task with one source, as its stage does."""
    task = TablesTask.model_validate({"source": str(folder), **settings})
    asked, tally = task.question_columns, Tally()
    (source,) = mapped_sources(task)
    assert asked is not None
    if source.questions:
        return *tables_and_questions(source.files, task.columns, source.questions, asked, tally, False), tally
    assert task.columns is not None
    return *tables_with_questions(source.files, task.columns, asked, tally, False), tally


@pytest.mark.parametrize(
    "grid",
    [
        CELLS,
        [dict(zip(CELLS[0], row, strict=True)) for row in CELLS[1:]],
        {"header": CELLS[0], "rows": CELLS[1:]},
        {"columns": CELLS[0], "data": CELLS[1:]},
        {name: [row[place] for row in CELLS[1:]] for place, name in enumerate(CELLS[0])},
        json.dumps(CELLS),
        json.dumps({"header": CELLS[0], "rows": CELLS[1:]}),
        MARKDOWN,
        "City;Population\nOslo;717710\nRome | Roma;2\nBergen;\n",
    ],
    ids=["lists", "objects", "header", "pandas", "columns", "json", "json-header", "markdown", "csv"],
)
def test_every_form_of_a_table_is_the_same_table(grid: Any, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({**ROW, "grid": grid}) + "\n")
    tables, (question,), _ = read(tmp_path, **MAPPING)
    (table,) = tables.values()
    assert (table.header, table.rows, table.title) == (("City", "Population"), WRITTEN, "Cities")
    assert (question.id, question.context_id, question.answers) == ("q-1", table.id, ("Oslo",))


@pytest.mark.parametrize("header", [CELLS[0], json.dumps(CELLS[0]), "City;Population"])
def test_a_header_of_its_own(header: Any, tmp_path: Path) -> None:
    row = {**ROW, "grid": CELLS[1:], "names": header}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    tables, _, _ = read(tmp_path, **MAPPING | {"columns": {"cells": "grid", "header": "names"}})
    assert next(iter(tables.values())).header == ("City", "Population")


def _rows() -> list[dict[str, Any]]:
    return [
        {"nr": 1, "ask": "Which city is largest?", "right": "Oslo", "grid": MARKDOWN},
        {"nr": 2, "ask": "Which one is second?", "right": "Rome", "grid": MARKDOWN},
        {"nr": 3, "ask": "Which one is empty?", "right": "", "grid": MARKDOWN},
    ]


def _delimited(sign: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8-sig") as handle:
            writer = csv.DictWriter(handle, list(_rows()[0]), delimiter=sign)
            writer.writeheader()
            writer.writerows(_rows())

    return write


def _workbook(path: Path) -> None:
    book = Workbook()
    page = book.active
    page.append(list(_rows()[0]))
    for row in _rows():
        page.append(list(row.values()))
    book.save(path)


def _stream(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for name in ("state.json", "dataset_info.json"):
        (path.parent / name).write_text("{}")
    table = pa.Table.from_pylist(_rows())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


KINDS: dict[str, Callable[[Path], Any]] = {
    "q.csv": _delimited(","),
    "q.tsv": _delimited("\t"),
    "q.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in _rows())),
    "q.json": lambda path: path.write_text(json.dumps({"data": _rows()})),
    "q.xlsx": _workbook,
    "q.parquet": lambda path: pq.write_table(pa.Table.from_pylist(_rows()), path),
    "train/data-00000-of-00001.arrow": _stream,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_holds_the_same_questions(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / name)
    mapping = {
        "columns": {"cells": "grid"},
        "question_columns": {"id": "nr", "question": "ask", "answers": "right"},
    }
    tables, questions, tally = read(tmp_path, **mapping)
    assert [(q.id, q.answers) for q in questions] == [("1", ("Oslo",)), ("2", ("Rome",))]
    assert [table.rows for table in tables.values()] == [WRITTEN]
    assert tally.dropped == {"question_unanswerable": 1}
    assert tally.read["questions"] == 3


def test_tables_in_files_that_questions_name(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "cities.csv").write_text("City;Population\nOslo;717710\nRome | Roma;2\nBergen;\n")
    (folder / "empty.csv").write_text("City;Population\n")
    (folder / "unused.csv").write_text("a,b\n1,2\n")
    book = Workbook()
    for row in CELLS:
        book.active.append(row)
    book.save(folder / "cities.xlsx")
    asked = folder / "faq.csv"
    asked.write_text(
        "File,Question,Answer\ncities.csv,Largest?,Oslo\ncities.xlsx,Second?,Rome\nempty.csv,First?,Oslo\n"
    )
    settings = {
        "questions": str(asked),
        "question_columns": {"question": "Question", "answers": "Answer", "table_id": "File"},
    }
    tables, questions, tally = read(folder, **settings)
    assert {key: table.rows for key, table in tables.items()} == dict.fromkeys(
        ("cities.csv", "cities.xlsx"), WRITTEN
    )
    assert [q.context_id for q in questions] == ["cities.csv", "cities.xlsx"]
    assert +tally.dropped == {
        "table_without_rows": 1,
        "question_of_table_without_rows": 1,
        "table_without_a_question": 1,
    }
    asked.write_text("File,Question,Answer\ncities,Largest?,Oslo\n")
    with pytest.raises(
        InputError, match=r"faq\.csv:2: .*'cities', which does not exist; did you mean 'cities\.csv'"
    ):
        read(folder, **settings)


def test_tables_in_rows_of_their_own_make_records(tmp_path: Path) -> None:
    with (tmp_path / "tables.jsonl").open("w") as handle:
        for number in range(6):
            rows = [[f"thing {number}{n}", n + number] for n in range(3)]
            handle.write(json.dumps({"key": number, "grid": rows, "names": ["Thing", "Price"]}) + "\n")
    with (tmp_path / "faq.csv").open("w") as handle:
        handle.write("t;Q;A\n")
        handle.writelines(f"{number};What costs {number}?;thing {number}0\n" for number in range(6))
    task = TablesTask.model_validate(
        {
            "source": str(tmp_path / "tables.jsonl"),
            "columns": {"id": "key", "cells": "grid", "header": "names"},
            "questions": str(tmp_path / "faq.csv"),
            "question_columns": {"question": "Q", "answers": "A", "table_id": "t"},
        }
    )
    config = ContextConfig(near_duplicates="off", test_share=0.3, tables=task)
    assert [label for label, _ in input_files(config)] == ["tables/tables.jsonl", "tables.questions/faq.csv"]
    build_record_files(config, tmp_path / "out")
    records = {record["id"]: record for record in read_records(tmp_path / "out" / "records.parquet")}
    assert len(records) == 6 and records["tables:faq-4"]["gold"] == ["thing 30"]
    assert "Thing | Price" in records["tables:faq-4"]["input"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"grid": "a table"}, r"q\.jsonl:1: the table is the text 'a table'; expected a list of rows"),
        ({"grid": [[1, [2]]]}, r"q\.jsonl:1: a cell of the table is no text \(list\)"),
        ({"grid": "[[1, 2"}, r"q\.jsonl:1: the table begins like JSON, but is none"),
        ({"grid": {"a": [1], "b": [1, 2]}}, r"q\.jsonl:1: the columns of the table have different lengths"),
        ({"grid": {"a": 1}}, r"q\.jsonl:1: the object has the fields a and no rows"),
        ({"grid": [1, 2]}, r"q\.jsonl:1: the rows of the table are neither lists nor objects"),
        ({"grid": None}, r"q\.jsonl:1: grid is empty, but tables\.columns\.cells needs it"),
        ({"grid": CELLS, "ask": ""}, r"ask is empty, but tables\.question_columns\.question needs it"),
        ({"grid": CELLS, "right": []}, r"q\.jsonl: no question is left \(1 question_unanswerable\)"),
    ],
)
def test_broken_rows_are_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({**ROW, **row}) + "\n")
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path, **MAPPING)
    assert "\n" not in str(caught.value)


def test_two_tables_of_one_id_are_refused(tmp_path: Path) -> None:
    rows = [{**ROW, "grid": CELLS}, {**ROW, "grid": CELLS[:3]}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        InputError, match=r"q\.jsonl:2: table id '7' already belongs to a table of other cells"
    ):
        read(tmp_path, **MAPPING | {"columns": {"id": "nr", "cells": "grid"}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": {"cells": "t"}}, "columns needs question_columns"),
        ({"questions": "q"}, "questions needs question_columns"),
        ({"question_columns": {"question": "q", "answers": "a"}}, "question_columns needs columns"),
        (
            {"questions": "q", "question_columns": {"question": "q", "answers": "a"}},
            "question_columns.table_id is needed",
        ),
        (
            {
                "questions": "q",
                "columns": {"cells": "c"},
                "question_columns": {"question": "q", "answers": "a", "table_id": "t"},
            },
            "columns.id is needed",
        ),
        (
            {
                "columns": {"cells": "c"},
                "question_columns": {"question": "q", "answers": "a", "table_id": "t"},
            },
            "table_id names tables of another file",
        ),
        ({"format": "columns"}, "format columns needs question_columns"),
        (
            {
                "format": "rows",
                "columns": {"cells": "c"},
                "question_columns": {"question": "q", "answers": "a"},
            },
            "but format is rows",
        ),
    ],
)
def test_half_mappings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        TablesTask.model_validate({"source": "x", **settings})


def _proposed(path: Path) -> dict[str, Any]:
    """Return the section `tables` that a preview of a file proposes."""
    text = "\n".join(preview(str(path)))
    return yaml.safe_load(text[text.index("context:") :])["context"]["tables"]


def test_a_preview_proposes_settings_that_read_the_file(tmp_path: Path) -> None:
    rows = [{"question": row["ask"], "answer": row["right"], "table": row["grid"]} for row in _rows()]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = _proposed(path)
    assert section["columns"] == {"cells": "table"}
    assert section["question_columns"] == {"question": "question", "answers": "answer"}
    _, questions, _ = read(path, **{key: value for key, value in section.items() if key != "source"})
    assert len(questions) == 2


def test_a_preview_finds_the_files_of_tables(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "1.csv").write_text("City,Population\nOslo,717710\n")
    path = tmp_path / "faq.tsv"
    path.write_text("Question\tAnswer\tTable file\nLargest?\tOslo\tcsv/1.csv\n")
    section = _proposed(path)
    assert section == {
        "source": str(tmp_path),
        "questions": str(path),
        "question_columns": {"question": "Question", "answers": "Answer", "table_id": "Table file"},
    }
    _, (question,), _ = read(Path(section.pop("source")), **section)
    assert question.context_id == "csv/1.csv"


def test_a_refusal_prints_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"query": "Which?", "answer": "Oslo", "cells": CELLS}) + "\n")
    with pytest.raises(
        InputError,
        match=r"tables\.columns: \{cells: cells\} and .*columns: \{question: query, answers: answer",
    ):
        table_rows.read_tables(tmp_path, path, Tally(), path.name)
