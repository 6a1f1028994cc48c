"""The files of made questions: the accepted ones, and the refused ones with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jora_core.base.record_columns import arrow_schema
from retrieval.corpus.file_sinks import ParquetSink

QUESTIONS, REFUSED = "questions.parquet", "refused.parquet"

#: `request` is the digest of the prompt and `created` the time of its answer, in seconds since 1970. The
#: tokens are those of the whole answer, which may hold several questions. `decision` is what a person said.
QUESTION_COLUMNS: dict[str, str] = {
    "id": "str",
    "question": "str",
    "answers": "list",
    "reasoned": "str",
    "kind": "str",
    "document_id": "str",
    "chunk_ids": "list",
    "evidence": "str",
    "quotes": "list",
    "language": "str",
    "synthetic": "bool",
    "decision": "str",
    "source": "str",
    "source_row": "int",
    "teacher": "str",
    "prompt_version": "int",
    "request": "str",
    "created": "int",
    "prompt_tokens": "int",
    "answer_tokens": "int",
}
REFUSED_COLUMNS: dict[str, str] = {**QUESTION_COLUMNS, "reason": "str"}


def write_questions(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], metadata: Mapping[str, str]
) -> int:
    """Write questions to a Parquet file. The same rows give the same bytes. Return their number.

    Args:
        path: the file.
        rows: the questions.
        columns: `QUESTION_COLUMNS` or `REFUSED_COLUMNS`.
        metadata: key-value metadata of the file.

    Raises:
        InputError: the file cannot be written.
    """
    import pyarrow as pa

    table = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema(columns))
    with ParquetSink(path, columns, metadata) as sink:
        sink.append_batches(table.to_batches())
    return table.num_rows
