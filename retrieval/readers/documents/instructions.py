"""Instructions of the Alpaca kind: rows of `instruction`, `input` (may be empty or missing) and `output`.

Files are JSON lines, a JSON list or Parquet. A row without an `id` gets one from the file name and the row.
Format: https://github.com/tatsu-lab/stanford_alpaca
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.files.rows import rows, text_of
from retrieval.text.normalize import fold

EXPECTED = "an object with instruction, input, output"


@dataclass(frozen=True)
class Triple:
    """One instruction with its answer, verbatim from the file."""

    id: str
    instruction: str
    input: str
    output: str
    source: str
    row: int


def read_triples(files: Sequence[SourceFile], tally: Tally) -> Iterator[Triple]:
    """Read the instructions in file order. Rows without an output are dropped and counted.

    `read["instructions"]` counts the instructions in the files.

    Raises:
        InputError: a row is broken, an id is used twice, or the files have no instruction.
    """
    seen: set[str] = set()
    for file in files:
        for where, row, value in rows(file, ("instruction", "output"), ("input", "id"), EXPECTED):
            tally.read["instructions"] += 1
            key = value.get("id")
            name = f"{file.name}:{row}" if key is None else fold(text_of(key, "id", where))
            if name in seen:
                raise InputError(f"{where}: id {name!r} is used twice; ids are unique")
            seen.add(name)
            instruction = text_of(value["instruction"], "instruction", where)
            texts = {field: _text(value.get(field), field, where) for field in ("input", "output")}
            if not texts["output"].strip():
                tally.dropped["instruction_without_output"] += 1
                continue
            yield Triple(name, instruction, texts["input"], texts["output"], file.name, row)
    if not seen:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(f"{names}: no instructions; expected {EXPECTED} a row")


def _text(value: Any, field: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: field {field} is {type(value).__name__}, expected text")
    return value or ""
