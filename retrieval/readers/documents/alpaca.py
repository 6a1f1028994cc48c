"""Instructions of the Alpaca kind: rows of `instruction`, `input` (may be empty or missing) and `output`.

Dolly calls the last two `context` and `response`. A row is taught verbatim.

Formats: https://github.com/tatsu-lab/stanford_alpaca,
https://huggingface.co/datasets/databricks/databricks-dolly-15k
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.readers.documents.layout_types import FoundInstruction
from retrieval.readers.files.rows import rows, text_of
from retrieval.text.values import printed

EXPECTED = "an object with instruction, input, output"


def read_instructions(file: SourceFile) -> Iterator[FoundInstruction]:
    """Read each row as an instruction, verbatim.

    Raises:
        InputError: a row is broken.
    """
    optional = ("input", "output", "context", "response", "id")
    for where, row, value in rows(file, ("instruction",), optional, EXPECTED):
        output = "output" if "output" in value else "response"
        if output not in value:
            raise InputError(f"{where}: field output is missing; expected {EXPECTED}")
        yield FoundInstruction(
            where,
            row,
            value.get("id"),
            text_of(value["instruction"], "instruction", where),
            _text(value, "input" if "input" in value else "context", where),
            _text(value, output, where),
        )


def _text(row: dict[str, Any], field: str, where: str) -> str:
    """Return the text of a field that may be missing, verbatim."""
    value = row.get(field)
    text = "" if value is None else printed(value)
    if text is None:
        raise InputError(f"{where}: field {field} is {type(value).__name__}, expected text")
    return text
