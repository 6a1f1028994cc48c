"""A task folder for lm-evaluation-harness, by which a stranger scores the exported model as we did.

A task has the records that the evaluation scored, as the exact prompts and choices that the model was asked,
and the right choices. `lm_eval` scores the choices by their log-likelihood, as the stage `evaluate` does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.configuration.gates import TRAINED_FIRST
from flows.configuration.schema import PipelineConfig
from flows.engine.errors import one_line_os_errors
from flows.engine.keys import identify
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES, build_context, convert_model
from flows.stages.evaluate import METRICS, PREDICTIONS, predict_spec
from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError
from jora_core.base.record_columns import RECORD_COLUMNS, arrow_schema
from retrieval.settings.task_registry import TASKS

MEASURE = "reply@1"
_NO_CHOICE = -100  # lm_eval's own mark of a right answer that is not among the choices


def check_task_folder(folder: Path, config: PipelineConfig) -> list[str]:
    """Return the tasks that can be written: those whose records have choices.

    Raises:
        InputError: no task has choices, or the folder holds something else.
    """
    names = [
        name
        for name in config.context.tasks
        if TASKS[name].facts.answers == "choice" and config.evaluate.most_records(name) != 0
    ]
    if not names or config.evaluate.mode == "generate":
        raise InputError(
            "--export-task: no evaluated task chooses among answers, which is what lm_eval scores as we do; "
            "add context.threads and evaluate.mode: choice"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--export-task {folder}: it exists and is not empty; give a new folder")
    return names


def write_task_folder(folder: Path, config: PipelineConfig, evaluation: Path) -> list[str]:
    """Write the task of each evaluated task with choices, and a README with command and expected score.

    Args:
        folder: the new folder.
        config: configuration of the pipeline.
        evaluation: artifact of the stage `evaluate`.

    Returns:
        Lines about what was written.

    Raises:
        InputError: the folder cannot be written.
    """
    store = open_store(config)
    keys = identify(config, STAGES, until="evaluate")
    upstream = {name: store.path(name, keys[name].key) for name in (build_context.NAME, convert_model.NAME)}
    lines: list[str] = []
    parts: list[str] = []
    for task in check_task_folder(folder, config):
        rows = _scored_records(upstream[build_context.NAME] / build_context.RECORDS, evaluation, task)
        with tempfile.TemporaryDirectory() as work:
            docs, result = _docs(config, task, rows, upstream[convert_model.NAME], Path(work))
        name = f"jora_{task}"
        with one_line_os_errors("write", folder):
            text = "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs)
            write_bytes(folder / f"{name}.jsonl", text.encode())
            write_bytes(folder / f"{name}.yaml", _yaml(name).encode())
        expected = _expected(evaluation)
        other = result["records"] - result["same_tokens"]
        said = f"{name}: {result['records']} records"
        lines.append(f"{said}, {other} of them with other tokens in lm_eval; {folder}")
        parts.append(_part(name, result, expected))
    with one_line_os_errors("write", folder):
        write_bytes(folder / "README.md", "\n".join([_HEAD, *parts]).encode())
    return lines


def _scored_records(path: Path, evaluation: Path, task: str) -> list[dict[str, Any]]:
    """Return the records of a task that the evaluation scored."""
    import pyarrow.parquet as pq

    table = pq.read_table(evaluation / PREDICTIONS, columns=["id"], filters=[("task", "=", task)])
    ids = list(dict.fromkeys(table.column("id").to_pylist()))
    filters = [("task", "=", task), ("split", "=", "test"), ("id", "in", ids)]
    rows = pq.read_table(path, columns=list(RECORD_COLUMNS), filters=filters).to_pylist()
    return [row for row in rows if row["choices"]]


def _docs(
    config: PipelineConfig, task: str, rows: list[dict[str, Any]], converted: Path, work: Path
) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Return the documents of a task, and the counts of the child process that wrote their prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = work / "records.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(RECORD_COLUMNS)), records)
    model = convert_model.base_folder(config, converted)
    result = run_child(
        "write_task", predict_spec(config, (task, config.evaluate.mode), records, model, work), work
    )
    gold = {row["id"]: set(row["gold"]) for row in rows}
    docs: list[dict[str, Any]] = []
    for line in (work / "docs.jsonl").read_text(encoding="utf-8").splitlines():
        doc = json.loads(line)
        labels = doc.pop("labels")
        right = [place for place, label in enumerate(labels) if label in gold[doc["id"]]]
        docs.append({**doc, "gold": right or [_NO_CHOICE]})
    return docs, result


def _expected(evaluation: Path) -> Mapping[str, Any]:
    """Return our score of the most trained model."""
    systems = json.loads((evaluation / METRICS).read_text(encoding="utf-8"))["systems"]
    return next(systems[name][MEASURE] for name in TRAINED_FIRST if MEASURE in systems.get(name, {}))


def _yaml(name: str) -> str:
    # Fields by name: a template would be filled in by Jinja, and prompts hold braces.
    return f"""task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


_HEAD = """# Tasks for lm-evaluation-harness

Written by `jora evaluate --export-task`. In this folder, with MODEL the exported `model/`:
"""


def _part(name: str, result: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    other = result["records"] - result["same_tokens"]
    note = (
        f"\nOf {other} records lm_eval encodes prompt or choice as other tokens, so they may be answered\n"
        "otherwise.\n"
        if other
        else ""
    )
    return f"""```bash
pip install 'lm-eval[hf]'
lm_eval --model hf --model_args pretrained=MODEL,dtype=float32,add_bos_token=False \\
  --include_path . --tasks {name}
```

Expected: `acc` {expected["value"]:.4f} on {result["records"]} records, which is our {MEASURE} of the exported
model (95 % interval {expected["low"]:.4f} to {expected["high"]:.4f}, from resampling whole contexts; the
error that lm_eval prints takes records for independent). Add no chat template: the prompts have it.
{note}"""
