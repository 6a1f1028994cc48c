"""Instructions with answers, in any layout of `DOCUMENT_LAYOUTS` that has them.

A row without an `id` gets one from the file name and the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.documents.documents import instruction_layout
from retrieval.readers.documents.layout_types import InstructionReader
from retrieval.readers.files.rows import text_of
from retrieval.text.normalize import fold


@dataclass(frozen=True)
class Triple:
    """One instruction with its answer, verbatim from the file."""

    id: str
    instruction: str
    input: str
    output: str
    source: str
    row: int


def read_triples(files: Sequence[SourceFile], tally: Tally, layout: str = "auto") -> Iterator[Triple]:
    """Read the instructions in file order. Rows without an output are dropped and counted.

    Args:
        files: the files.
        tally: `read["instructions"]` counts the instructions in the files; `dropped` those left out.
        layout: the configured layout of rows; "auto": detected from the fields of each file's first row.

    Raises:
        InputError: a row is broken, an id is used twice, or the files have no instruction.
    """
    seen: set[str] = set()
    for file in files:
        reader = cast(InstructionReader, import_module(instruction_layout(file, layout).module))
        for found in reader.read_instructions(file):
            tally.read["instructions"] += 1
            name = (
                f"{file.name}:{found.row}"
                if found.key is None
                else fold(text_of(found.key, "id", found.where))
            )
            if name in seen:
                raise InputError(f"{found.where}: id {name!r} is used twice; ids are unique")
            seen.add(name)
            if found.dropped or not found.output.strip():
                tally.dropped[found.dropped or "instruction_without_output"] += 1
                continue
            yield Triple(name, found.instruction, found.input, found.output, file.name, found.row)
    if not seen:
        names = ", ".join(str(file.path) for file in files[:3])
        raise InputError(f"{names}: no instructions; expected a row with instruction, input, output")
