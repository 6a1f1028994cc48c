"""Make the prompts of questions: ``python -m flows.children.ask_corpus --spec SPEC.json``.

The command `jora ask` starts this module as a child process, because the libraries of retrieval are slow to
import and the embedder is large. It writes the prompts as a records file and the texts in them to
`result.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from flows.children.ask_corpus_spec import AskSpec
from jora_core.base.progress import ProgressBars
from jora_core.base.record_columns import CHANNEL_RECORD_COLUMNS, arrow_schema, is_channel
from jora_core.base.spec_command import run_spec_command
from jora_core.specs.read_spec import read_spec
from retrieval.build.ask import ask_corpus
from retrieval.tasks.asking import Inquiry

_COLUMNS = {
    **dict.fromkeys(("id", "instruction", "input", "split", "task", "context_id"), "str"),
    **dict.fromkeys(("context_ids", "choices"), "list"),
}
_CHANNEL_COLUMNS = {"output": "str", **CHANNEL_RECORD_COLUMNS}


def main(spec: AskSpec) -> None:
    """Write the records of the questions, and the texts of their prompts."""
    inquiries = [
        Inquiry(f"ask-{number}", text, spec.about, spec.author) for number, text in enumerate(spec.texts, 1)
    ]
    with ProgressBars() as bars:
        found = ask_corpus(spec.context, spec.task, inquiries, spec.work_dir, spec.top, bars.show)
    rows = [one.record for one in found]
    columns = _COLUMNS | (_CHANNEL_COLUMNS if any(map(is_channel, rows)) else {})
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(columns)), spec.records)
    result = {"asked": [{**asdict(one), "record": one.record} for one in found]}
    (spec.output_dir / "result.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    run_spec_command(
        lambda path: read_spec(path, AskSpec), main, description="Make the prompts of questions."
    )
