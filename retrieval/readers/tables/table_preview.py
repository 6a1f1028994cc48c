"""Tell whether a file holds questions about tables, and propose the settings that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.readers.files.columns import first_rows, guess, proposal, written
from retrieval.readers.tables.table_cells import rows_of
from retrieval.readers.tables.wikitables import COLUMNS
from retrieval.settings.file_suffixes import TABLE_SUFFIXES

_SHOWN = 3


def table_settings(file: SourceFile, names: Sequence[str]) -> tuple[str, list[str], list[str]] | None:
    """Return what a file of questions about tables holds, the first rows as read, and the settings for it.

    Args:
        file: the file.
        names: its columns.

    Returns:
        (what it is, lines that show the rows, lines of the section `tables`); None if the file holds no
        questions about tables.
    """
    source = str(file.path)
    if set(COLUMNS) <= set(names):
        return "questions about tables in WikiTableQuestions' layout", [], [f"source: {source}"]
    rows = first_rows(file.path, _SHOWN)
    if {"question", "table_id", "sql.sel"} <= set(names):
        return "questions about tables in WikiSQL's layout", [], [f"source: {source}"]
    asked = guess(names, "table_questions")
    if not rows or not {"question", "answers"} <= asked.keys():
        return None
    if {"question", "table"} <= set(names) or {"question", "table.header", "table.rows"} <= set(names):
        table = rows[0].get("table")
        if isinstance(table, Mapping) and {"header", "rows"} <= table.keys():
            return "questions with their tables", [], [f"source: {source}"]
    shown = _cells(rows[0], names)
    if shown is not None:
        mapping = {name: source for name, source in asked.items() if name != "table_id"}
        lines = [f"question: {row.get(mapping['question'])!s:.80}" for row in rows]
        settings = [
            f"source: {source}",
            f"columns: {written(shown)}",
            f"question_columns: {written(mapping)}",
        ]
        return "questions with their tables", lines, settings
    name = str(rows[0].get(asked.get("table_id", ""), ""))
    if not name.lower().endswith(TABLE_SUFFIXES):
        return None
    beside = file.path.parent / name
    folder = str(file.path.parent) if beside.is_file() else "FOLDER_OF_THE_TABLES"
    lines = [
        f"question: {row.get(asked['question'])!s:.80}, table: {row.get(asked['table_id'])}" for row in rows
    ]
    settings = [
        f"source: {folder}",
        f"questions: {source}",
        f"question_columns: {proposal(file.path, 'table_questions')}",
    ]
    return "questions that name files of tables", lines, settings


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str] | None:
    """Return the mapping of the table in a row, or None if no column holds one."""
    mapping = guess(names, "tables")
    # An object is listed by its parts, but is also a table as a whole.
    whole = [name for name in row if name not in names]
    for name in (*filter(None, [mapping.get("cells")]), *guess(whole, "tables").values(), *whole):
        value = row.get(name)
        if not isinstance(value, (list, dict)) and "\n" not in str(value):
            continue
        try:
            header = row.get(mapping["header"]) if "header" in mapping else None
            if len(rows_of(value, header, "")) > 1:
                # An object of its own has its own header and title.
                inside = isinstance(value, dict)
                return {"cells": name} if inside else {**mapping, "cells": name}
        except InputError:
            continue
    return None
