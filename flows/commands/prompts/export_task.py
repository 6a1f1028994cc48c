"""Writing of the scored choices as a task of EleutherAI's lm-eval, so that others can count again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.configuration.gates import TRAINED_FIRST
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.errors import one_line_os_errors
from flows.engine.keys import identify
from flows.report.wording import system_name
from flows.stages import STAGES, build_context
from flows.stages.converted_model import converted
from flows.stages.evaluate import METRICS, Part, evaluated_parts, question_settings, write_drawn
from jora_core.base.atomic_files import atomic_path
from jora_core.base.errors import InputError
from jora_core.specs.answers import TaskFilesSpec
from retrieval.build.record_files import read_rankings, read_records
from retrieval.evaluation.drawn_records import draw_records
from retrieval.tasks.answers import right_choices
from retrieval.text.labels import plural

_README = """\
# {name}: a task of lm-eval

{documents} held-out records of `{project}`, as its evaluation asked them. With the export of the same run:

```bash
pip install "lm-eval[hf]"
lm_eval --model hf --model_args pretrained=EXPORT/model{arguments} --tasks {name} --include_path DIR
```

`EXPORT` is the artifact of the stage `export`, `DIR` this folder. No chat template and no examples may be
added: the prompts are whole.

| lm-eval | here | {system} |
|---|---|---|
{scores}

{remarks}
"""


def choice_parts(config: PipelineConfig) -> list[Part]:
    """Return the tasks whose answers are chosen and not written.

    Raises:
        InputError: the configuration has none.
    """
    threads = config.context.threads
    if threads is not None and threads.direction == "channel":
        raise InputError(
            "--export-task: lm-eval has no task in which each choice has a prompt of its own, as with "
            "context.threads.direction: channel"
        )
    found = [part for part in evaluated_parts(config) if part.mode != "generate"]
    if not found:
        raise InputError(
            "--export-task: this configuration scores no choices; give context.threads, and evaluate.mode "
            "choice or both"
        )
    return found


def export_tasks(config: PipelineConfig, evaluation: ArtifactRef, store: Store, folder: Path) -> list[str]:
    """Write the files of a task of lm-eval for each task with choices; return a line about each.

    Args:
        config: configuration of the evaluation.
        evaluation: artifact of the stage `evaluate`.
        store: store of the artifact.
        folder: folder of the files, which need not exist.

    Raises:
        InputError: the folder cannot be written, or no record has a right choice.
    """
    metrics = json.loads((Path(evaluation.path) / METRICS).read_text(encoding="utf-8"))
    key = identify(config, STAGES, until=evaluation.stage)[build_context.NAME].key
    built = store.path(build_context.NAME, key)
    model = Path(converted(config, store, STAGES).model.path)
    lines = []
    with one_line_os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    for part in choice_parts(config):
        records = read_records(built / build_context.RECORDS, part.task, "test")
        # The draw depends on records and seed alone, so these are the evaluated records.
        chosen = draw_records(records, part.max_records, config.seed)
        gold = right_choices(
            part.task, chosen, read_rankings(built / build_context.RANKINGS, part.task, "test")
        )
        with tempfile.TemporaryDirectory(prefix="jora-task-") as name:
            work = Path(name)
            write_drawn(chosen, work / "records.parquet")
            spec = TaskFilesSpec(
                **question_settings(config, part, model, work / "records.parquet"),
                name=f"jora_{part.task}",
                gold=gold,
                folder=folder.resolve(),
                output_dir=work,
            )
            result = run_child("jora_core.commands.task_files.write_task", spec, work)
        readme = folder / f"{spec.name}.md"
        with atomic_path(readme) as temporary:
            temporary.write_text(_readme(config, spec.name, result, metrics), encoding="utf-8")
        lines += [
            f"{folder}: task {spec.name}, {plural(result['documents'], 'document')}; see {readme}",
            *(f"warning: {line}" for line in _warnings(result)),
        ]
    return lines


def _readme(config: PipelineConfig, name: str, result: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    system = next((found for found in TRAINED_FIRST if found in metrics["systems"]), None)
    found = metrics["systems"].get(system, {})
    rows = [
        (theirs, ours, found.get(ours))
        for theirs, ours in (("acc", "reply@1"), ("acc_norm", "normalised_reply@1"))
    ]
    scores = [
        f"| {theirs} | {ours} | {'not scored' if score is None else format(score['value'], '.4f')} |"
        for theirs, ours, score in rows
    ]
    remarks = [f"{line[0].upper()}{line[1:]}." for line in _warnings(result)] or [
        "lm-eval makes the same tokens of every document."
    ]
    return _README.format(
        name=name,
        documents=f"{result['documents']:,}",
        project=config.project,
        arguments=",add_bos_token=False" if result["adds_bos"] else "",
        system=system_name(system) if system else "",
        scores="\n".join(scores),
        remarks="\n".join(remarks),
    )


def _warnings(result: Mapping[str, Any]) -> list[str]:
    """Return what makes lm-eval's scores other than ours."""
    of_all = f"of {plural(result['documents'], 'document')}"
    lines = []
    if result["differing"]:
        lines.append(
            f"lm-eval makes other tokens than our evaluation of {result['differing']:,} {of_all}, so their "
            "answers can differ"
        )
    if result["longer_than_model"]:
        lines.append(
            f"{result['longer_than_model']:,} {of_all} are longer than the model's max_position_embeddings; "
            "lm-eval cuts their beginning, our evaluation does not"
        )
    return lines
