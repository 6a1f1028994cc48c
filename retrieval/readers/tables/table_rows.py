"""Questions whose rows bring their table along: WikiTableQuestions and WikiSQL as JSON or Parquet.

A row has `question`, and either `answers` (a list of texts) or `sql`, which is executed on the table. The
table is `table: {"header", "rows", "name"?}` in the row, or `table_id` names one in the file `….tables.jsonl`
beside it, as WikiSQL has it.

Formats: https://huggingface.co/datasets/stanfordnlp/wikitablequestions,
https://github.com/salesforce/WikiSQL
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, unpacked_name
from retrieval.corpus.types import Question, Table, Tally
from retrieval.readers.files.columns import advice
from retrieval.readers.files.rows import rows, text_of, texts_of
from retrieval.readers.tables.table_cells import table_of
from retrieval.text.normalize import fold
from retrieval.text.values import is_empty, printed

EXPECTED = "a row with question, table (header, rows) or table_id, and answers or sql"
_OPTIONAL = ("id", "answers", "answer", "sql", "table", "table_id")
_AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
_OPERATORS = ("=", ">", "<")


def read_tables(
    root: Path, path: Path, tally: Tally, source: str, keep_unanswerable: bool = False
) -> tuple[dict[str, Table], list[Question]]:
    """Read the tables, by id, and the questions, in file order.

    Args:
        root: the folder of the file, where a file of tables may lie beside it.
        path: the file of questions.
        tally: counts tables, rows and questions, and what is dropped.
        source: the name of the file in records.
        keep_unanswerable: whether questions without an answer are returned; else they are dropped.

    Raises:
        InputError: a row is broken, an id is used twice, or there is no question.
    """
    tables: dict[str, Table | None] = {}
    questions: list[Question] = []
    seen: dict[str, int] = {}
    beside: dict[str, dict[str, Any]] | None = None
    file = SourceFile(path, path.name)
    settings = {"tables": "tables.columns", "table_questions": "tables.question_columns"}
    for where, row, value in rows(file, ("question",), _OPTIONAL, EXPECTED, mapped_by=settings):
        tally.read["questions"] += 1
        found = value.get("table")
        if found is None:
            if row == 1 and is_empty(value.get("table_id")):
                how = advice(path, settings)
                raise InputError(f"{where}: the question has no table; expected {EXPECTED}{how}")
            beside = _tables_beside(path) if beside is None else beside
            found = beside.get(text_of(value.get("table_id"), "table_id", where))
        if not isinstance(found, dict):
            raise InputError(f"{where}: the question has no table; expected {EXPECTED}")
        key = _table_id(found)
        if key not in tables:
            tables[key] = _table(key, found, where, tally)
        table = tables[key]
        if table is None:
            tally.dropped["question_of_table_without_rows"] += 1
            continue
        given = value.get("id")
        name = f"{path.name}:{row}" if is_empty(given) else fold(text_of(given, "id", where))
        if name in seen:
            raise InputError(f"{where}: id {name!r} is already used in row {seen[name]}; ids are unique")
        seen[name] = row
        answers = _answers(value, table, where)
        if not answers and not keep_unanswerable:
            tally.dropped["question_unanswerable"] += 1
            continue
        tally.read["questions_unanswerable"] += not answers
        text = fold(text_of(value["question"], "question", where))
        questions.append(Question(name, key, text, answers, source, row))
    if not questions:
        raise InputError(f"{path}: no question with a table and an answer; expected {EXPECTED}")
    return {key: table for key, table in tables.items() if table is not None}, questions


def _tables_beside(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of WikiSQL's `NAME.tables.jsonl` beside `NAME.jsonl`, by id."""
    stem = unpacked_name(path).rpartition(".")[0]
    found = [other for other in sorted(path.parent.iterdir()) if other.name.startswith(f"{stem}.tables.")]
    if not found:
        raise InputError(
            f"{path}: rows name tables by table_id, but {stem}.tables.jsonl is not beside the file; add it"
        )
    file = SourceFile(found[0], found[0].name)
    expected = "a table with id, header, rows"
    return {
        text_of(value["id"], "id", where): value
        for where, _, value in rows(file, ("id", "header", "rows"), ("name", "caption"), expected)
    }


def _table_id(value: Mapping[str, Any]) -> str:
    """Return the name of a table, or a digest of its cells, because questions repeat their table."""
    name = value.get("id") or value.get("name")
    if isinstance(name, str) and name.strip():
        return fold(name)
    cells = repr((value.get("header"), value.get("rows"))).encode("utf-8", "surrogatepass")
    return f"table#{hashlib.sha256(cells).hexdigest()[:12]}"


def _table(key: str, value: Mapping[str, Any], where: str, tally: Tally) -> Table | None:
    header, found = value.get("header") or [], value.get("rows") or []
    lists = isinstance(header, list) and isinstance(found, list) and all(isinstance(r, list) for r in found)
    if not lists:
        raise InputError(f"{where}: field table has no lists header and rows; expected {EXPECTED}")
    title = value.get("caption") or value.get("page_title") or ""
    return table_of(key, [header, *found], str(title), where, tally)


def _answers(row: Mapping[str, Any], table: Table, where: str) -> tuple[str, ...]:
    """Return the accepted answers of a row: as given, or what its query gives."""
    given = row.get("answers", row.get("answer"))
    if given is None and row.get("sql") is not None:
        return _executed(row["sql"], table, where)
    return tuple(map(fold, texts_of(given, "answers", where)))


def _executed(sql: Any, table: Table, where: str) -> tuple[str, ...]:
    """Return what a query of WikiSQL gives: one column of the rows that fit, or its aggregate."""
    try:
        column, aggregate = int(sql["sel"]), _AGGREGATES[int(sql["agg"])]
        conditions = _conditions(sql["conds"])
        kept = [row for row in table.rows if all(_fits(row[c], _OPERATORS[o], v) for c, o, v in conditions)]
        cells = [row[column] for row in kept]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: field sql is not a query of WikiSQL ({error}); expected sel, agg, conds"
        ) from error
    if aggregate == "COUNT":
        return (str(len(cells)),)
    if not aggregate:
        return tuple(dict.fromkeys(filter(None, cells)))
    numbers = [number for number in map(_number, cells) if number is not None]
    if not numbers:
        return ()
    results = {"MAX": max, "MIN": min, "SUM": sum, "AVG": lambda n: sum(n) / len(n)}
    return (f"{results[aggregate](numbers):.10g}",)


def _conditions(value: Any) -> Sequence[tuple[int, int, str]]:
    if isinstance(value, dict):  # columns, as on data set hubs
        value = zip(value["column_index"], value["operator_index"], value["condition"], strict=True)
    return [(int(column), int(operator), printed(wanted) or "") for column, operator, wanted in value]


def _fits(cell: str, operator: str, wanted: str) -> bool:
    one, other = _number(cell), _number(wanted)
    if one is None or other is None:
        return operator == "=" and fold(cell).lower() == fold(wanted).lower()
    if operator == "=":
        return one == other
    return one > other if operator == ">" else one < other


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
