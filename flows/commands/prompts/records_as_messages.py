"""Writing of records in the chat format, for other tools: `messages` as JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.engine.errors import one_line_os_errors
from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import InputError
from jora_core.specs.prompts.messages import as_messages

_COLUMNS = ("id", "instruction", "input", "output", "task", "split", "context_id")
_ROWS = 2048


def check_target(target: Path) -> None:
    """Refuse a name that does not say which format is wanted.

    Raises:
        InputError: the name ends neither with .jsonl nor with .parquet.
    """
    if target.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--messages {target}: expected a name that ends with .jsonl or .parquet")


def write_messages(records: Path, target: Path, system: str = "") -> int:
    """Write every record as a conversation of one exchange, and return their number.

    A row has `id`, `messages`, `task`, `split` and `context_id`. The user's message is the instruction, a
    blank line and the input, as in the training.

    Args:
        records: records.parquet.
        target: file to write, JSON lines or Parquet by its name.
        system: system message of every conversation, "" for none.

    Raises:
        InputError: the target's name is of neither format, or it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_target(target)
    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    schema = pa.schema(
        [("id", text), ("messages", pa.list_(message)), *((n, text) for n in ("task", "split", "context_id"))]
    )
    count = 0
    with one_line_os_errors("write", target), atomic_path(target) as temporary:
        if target.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as file:
                for row in _rows(records, system):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
        else:
            with pq.ParquetWriter(temporary, schema) as writer:
                waiting: list[dict[str, Any]] = []
                for row in _rows(records, system):
                    waiting.append(row)
                    count += 1
                    if len(waiting) == _ROWS:
                        writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                        waiting = []
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
    return count


def _rows(records: Path, system: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(records) as file:
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(_COLUMNS)):
            for row in batch.to_pylist():
                asked = [dict(m) for m in as_messages(row["instruction"], row["input"], system)]
                answered = {"role": "assistant", "content": row["output"]}
                rest = {name: row[name] for name in ("task", "split", "context_id")}
                yield {"id": row["id"], "messages": [*asked, answered], **rest}
