"""Kinds of change between two runs, what must run after each, and what the plan must say about it.

`python -m tests.flows.changes` prints the table of docs/reliability.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.flows.conftest import Project

ALL = ["build-context", "convert-model", "finetune-structure", "finetune-task", "evaluate", "export"]
TRAINING_ON = ALL[2:]
# What runs after a change of the records, of the base model, and of the second phase.
RECORDS_ON = ["build-context", *TRAINING_ON]
# After a change of the threads alone: the first phase reads tables and documents.
THREADS_ON = ["build-context", "finetune-task", "evaluate", "export"]
MODEL_ON = ["convert-model", *TRAINING_ON]
SECOND_PHASE_ON = ALL[3:]


@dataclass(frozen=True)
class Change:
    """What happens between two runs, what must run then, and words that the plan must say about one stage."""

    name: str
    apply: Callable[[Project], Any]
    runs: list[str]
    stage: str = ""
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def append(name: str, text: str) -> Callable[[Project], Any]:
    def apply(project: Project) -> None:
        with (project.folder / name).open("a") as file:
            file.write(text)

    return apply


def flip(stage: str, name: str) -> Callable[[Project], Any]:
    """Flip one bit of an artifact's file and give the file its old times back."""

    def apply(project: Project) -> None:
        path = project.artifact(stage) / name
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return apply


def delete(stage: str, name: str = "") -> Callable[[Project], Any]:
    def apply(project: Project) -> None:
        path = project.artifact(stage) / name if name else project.folder / "runs" / stage
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def set(*keys: Any, value: Any) -> Callable[[Project], Any]:
    def apply(project: Project) -> None:
        target: Any = project.raw
        for key in keys[:-1]:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        target[keys[-1]] = value

    return apply


def touch_all(project: Project) -> None:
    for path in project.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


def move_corpus(project: Project) -> None:
    (project.folder / "elsewhere").mkdir()
    (project.folder / "threads.ndjson").rename(project.folder / "elsewhere" / "threads.ndjson")
    project.raw["context"]["threads"]["source"] = "elsewhere/threads.ndjson"


def leave_killed_run(project: Project) -> None:
    left = project.folder / "runs" / ".tmp" / f"evaluate-{'0' * 64}"
    left.mkdir(parents=True)
    (left / "half").write_text("half an artifact")


CHANGES = [
    Change("nothing", lambda project: None, []),
    Change("all times touched", touch_all, []),
    Change(
        "a thread edited",
        append("threads.ndjson", "\n"),
        THREADS_ON,
        "build-context",
        "input changed: threads.ndjson",
    ),
    Change(
        "one thread added",
        append("threads.ndjson", '{"posts": [{"no": 9, "resto": 0, "time": 3, "com": "Salt?"}]}\n'),
        THREADS_ON,
        "finetune-structure",
        "up to date, as build-context changes nothing of tables and qa",
    ),
    Change(
        "a document edited",
        append("documents.jsonl", "\n"),
        # The document records are not scored, so the evaluation runs because of the adapters.
        RECORDS_ON,
        "finetune-task",
        "upstream finetune-structure runs",
    ),
    Change(
        "a table's cell edited",
        append("tables/csv/200-csv/1.csv", '"Bob","2"\n'),
        RECORDS_ON,
        "build-context",
        "input changed: tables/csv/200-csv/1.csv",
    ),
    Change(
        "a table added",
        lambda p: (p.folder / "tables/csv/200-csv/2.csv").write_text('"a"\n"b"\n'),
        RECORDS_ON,
        "build-context",
        "input changed: tables/csv/200-csv/2.csv",
    ),
    Change(
        "a byte of the base model",
        append("model/model.safetensors", "x"),
        MODEL_ON,
        "convert-model",
        "input changed: model/model.safetensors",
    ),
    Change(
        "a file of the base model gone",
        lambda p: (p.folder / "model/tokenizer.json").unlink(),
        MODEL_ON,
        "convert-model",
        "input changed: model/tokenizer.json is gone",
    ),
    Change(
        "the second phase's learning rate",
        set("phases", 1, "optim", "learning_rate", value=2e-4),
        SECOND_PHASE_ON,
        "finetune-task",
        "config changed: phases.finetune-task.optim.learning_rate 0.0001 → 0.0002",
    ),
    Change(
        "the first phase's steps",
        set("phases", 0, "max_steps", value=3),
        TRAINING_ON,
        "finetune-task",
        "upstream finetune-structure runs",
    ),
    Change(
        "the system message of the prompts",
        set("prompt", "system", value="Be brief."),
        TRAINING_ON,
        "finetune-structure",
        "config changed: prompt.system",
    ),
    Change(
        "the seed",
        set("seed", value=1),
        RECORDS_ON,
        "finetune-structure",
        "config changed: seed 0 → 1; upstream build-context runs",
    ),
    Change(
        "retrieval's setting",
        set("context", "threads", "n_contexts", value=5),
        THREADS_ON,
        "build-context",
        "config changed: context.threads.n_contexts 10 → 5",
    ),
    Change(
        "the evaluation's size",
        set("evaluate", "max_records", value=7),
        ["evaluate", "export"],
        "evaluate",
        "config changed: evaluate.max_records None → 7",
    ),
    Change(
        "the exported type",
        set("export", "dtype", value="bfloat16"),
        ["export"],
        "export",
        "config changed: export.dtype None → bfloat16",
    ),
    Change("how often a checkpoint is written", set("phases", 0, "checkpoint_every", value=7), []),
    Change("who hears of the training", set("phases", 0, "report_to", value=["tensorboard"]), []),
    Change("retries and schedule", set("retries", "max_retries", value=9), []),
    Change("the corpus moved", move_corpus, []),
    Change(
        "code of one stage",
        append("code/flows/stages/export.py", "\n# changed\n"),
        ["export"],
        "export",
        "code changed: flows/stages/export.py",
    ),
    Change(
        "code of retrieval",
        append("code/retrieval/search/bm25/index.py", "\n# changed\n"),
        RECORDS_ON,
        "build-context",
        "code changed: retrieval/search/bm25/index.py",
    ),
    Change(
        "code of a reader of threads",
        append("code/retrieval/readers/threads/irc.py", "\n# changed\n"),
        THREADS_ON,
        "finetune-task",
        "upstream build-context runs (threads)",
    ),
    Change(
        "code of the training",
        append("code/jora_core/training/train_step.py", "\n# changed\n"),
        TRAINING_ON,
        "finetune-structure",
        "code changed: jora_core/training/train_step.py",
    ),
    Change(
        "a bit of the records",
        flip("build-context", "records.parquet"),
        ["build-context"],
        "build-context",
        "artifact damaged: records.parquet",
    ),
    Change(
        "a bit of a log",
        flip("evaluate", "result.json"),
        ["evaluate"],
        "evaluate",
        "artifact damaged: result.json",
    ),
    Change(
        "a bit of a manifest",
        flip("finetune-task", "manifest.json"),
        ["finetune-task"],
        "finetune-task",
        "artifact damaged: manifest.json",
    ),
    Change(
        "an adapter deleted",
        delete("finetune-structure", "adapter_model.safetensors"),
        ["finetune-structure"],
        "finetune-structure",
        "artifact damaged: adapter_model.safetensors",
    ),
    Change(
        "a file put into an artifact",
        lambda p: (p.artifact("export") / "model/extra.json").write_text("{}"),
        ["export"],
        "export",
        "artifact damaged: model/extra.json",
    ),
    Change(
        "a whole stage deleted", delete("convert-model"), ["convert-model"], "convert-model", "no artifact"
    ),
    Change("what a killed run left", leave_killed_run, []),
    Change("everything forced", lambda p: None, ALL, "evaluate", "forced", {"force": True}),
    Change(
        "forced from a stage",
        lambda p: None,
        ALL[3:],
        "finetune-task",
        "forced",
        {"force": True, "start": "finetune-task"},
    ),
    Change(
        "one stage forced",
        lambda p: None,
        ["convert-model"],
        "convert-model",
        "forced",
        {"force": True, "only": "convert-model"},
    ),
    Change(
        "one stage of a changed seed",
        set("evaluate", "max_records", value=3),
        ["evaluate"],
        "evaluate",
        "config changed",
        {"only": "evaluate"},
    ),
]


def table() -> str:
    """The changes as a Markdown table, with the stages that run after each."""
    lines = ["| Change | Runs again |", "|---|---|"]
    for change in CHANGES:
        if change.options:
            continue
        runs = ", ".join(change.runs) or "nothing"
        after = change.runs[1:]
        # "from … on" instead of a list of all later stages.
        if len(change.runs) > 2 and after == ALL[ALL.index(after[0]) :]:
            runs = f"{change.runs[0]}, and from {after[0]} on"
            if change.runs == ALL[ALL.index(change.runs[0]) :]:
                runs = f"from {change.runs[0]} on"
        lines.append(f"| {change.name} | {runs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
