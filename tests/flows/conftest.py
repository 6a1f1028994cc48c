"""A small project in a temporary folder: real declarations of all stages, with fast stand-ins for their
work.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.lineage_file import LINEAGE, render_lineage
from flows.engine.stage import Part, Stage, StageContext, Upstream
from flows.stages import STAGES
from jora_core.base.digests import file_digest, json_digest

# What each stage's stand-in writes: files that the next stages read (a function of what the stage read),
# and a log that differs from run to run, as a real one's times do.
OUTPUTS = {
    "make-questions": ("questions.parquet", "refused.parquet", "metrics.json"),
    "build-context": ("records.parquet", "rankings.parquet", "links.parquet", "metrics.json"),
    "convert-model": ("model.json",),
    "finetune-structure": ("adapter_model.safetensors", "adapter_config.json"),
    "finetune-task": ("adapter_model.safetensors", "adapter_config.json"),
    "evaluate": ("metrics.json", "predictions.parquet", "record_values.parquet"),
    "compare-seeds": ("seeds.json",),
    "check-gates": ("gates.json",),
    "export": (
        "model/model.safetensors",
        "model/config.json",
        "adapter/adapter_model.safetensors",
        "README.md",
    ),
    "push": ("push.json",),
}


@dataclass
class Project:
    """One project: its folder, its configuration file as a value, its stages, and the stages' runs so far."""

    folder: Path
    raw: dict[str, Any]
    registry: dict[str, Stage] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    @property
    def config_file(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs")

    def config(self, *overrides: str) -> PipelineConfig:
        self.config_file.write_text(yaml.safe_dump(self.raw, sort_keys=False))
        return load_config(self.config_file, overrides)

    def artifact(self, stage: str) -> Path:
        """The folder of the stage's only artifact."""
        (found,) = [path for path in (self.folder / "runs" / stage).iterdir() if path.is_dir()]
        return found


def write_corpora(folder: Path) -> None:
    """Corpora of all three formats and a model folder, as small as they can be."""
    posts = [{"no": 1, "resto": 0, "time": 1, "name": "Ann", "com": "I bake bread."}]
    reply = '<a href="#p1" class="quotelink">&gt;&gt;1</a><br>Which flour?'
    posts.append({"no": 2, "resto": 1, "time": 2, "name": "Bob", "com": reply})
    (folder / "threads.ndjson").write_text(json.dumps({"posts": posts}) + "\n")
    (folder / "tables" / "data").mkdir(parents=True)
    (folder / "tables" / "csv" / "200-csv").mkdir(parents=True)
    (folder / "tables" / "data" / "training.tsv").write_text(
        "id\tutterance\tcontext\ttargetValue\nq1\twho won?\tcsv/200-csv/1.csv\tAnn\n"
    )
    (folder / "tables" / "csv" / "200-csv" / "1.csv").write_text('"name","points"\n"Ann","3"\n')
    (folder / "documents.jsonl").write_text('{"id": "d1", "title": "Oven", "text": "It is hot."}\n')
    (folder / "questions.jsonl").write_text(
        '{"id": "x1", "document_id": "d1", "question": "How is it?", "answers": ["hot"]}\n'
    )
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(bytes(64))
    (folder / "model" / "tokenizer.json").write_text("{}")


def configuration() -> dict[str, Any]:
    """The project's configuration file."""

    def phase(stage: str, *tasks: str) -> dict[str, Any]:
        sizes = {"max_seq_len": 64, "tokens_per_batch": 128, "max_steps": 2}
        return {"stage": stage, "tasks": list(tasks), **sizes, "optim": {"learning_rate": 1e-4}}

    return {
        "seed": 0,
        "store": "runs",
        "model": {"path": "model"},
        "context": {
            "tables": {"source": "tables"},
            "threads": {"source": "threads.ndjson", "legs": ["bm25", "recency", "opening"]},
            "qa": {"source": "documents.jsonl", "questions": "questions.jsonl", "legs": ["bm25"]},
        },
        "phases": [
            phase("finetune-structure", "tables", "qa"),
            phase("finetune-task", "threads"),
        ],
    }


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose stages are the real ones but for their work and for the place of their code."""
    write_corpora(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, configuration())
    for stage in STAGES.values():
        code = tmp_path / "code"
        made.registry[stage.name] = replace(
            stage,
            run=_stand_in(stage, made.runs),
            sources=_copied_sources(stage, code),
            parts=_parts_of_copies(stage, code),
        )
    return made


def _parts_of_copies(stage: Stage, folder: Path) -> Callable[[PipelineConfig], dict[str, Part]]:
    return lambda config: {
        name: replace(part, sources={label: folder / label for label in part.sources})
        for name, part in stage.parts(config).items()
    }


def _copied_sources(stage: Stage, folder: Path) -> Callable[[], Mapping[str, Path]]:
    copies = {label: folder / label for label in stage.sources()}
    for label, path in stage.sources().items():
        copies[label].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copies[label])
    return lambda: copies


def _stand_in(stage: Stage, runs: list[str]) -> Callable[[StageContext], dict[str, Any]]:
    def read_of(item: Upstream, context: StageContext) -> list[str]:
        if item.parts:
            return [context.manifests[item.stage]["parts"][name] for name in item.reads]
        found = [sorted(context.upstream[item.stage].glob(name)) for name in item.reads]
        return [file_digest(path) for paths in found for path in paths]

    def run(context: StageContext) -> dict[str, Any]:
        runs.append(stage.name)
        inputs = {name: file_digest(path) for name, path in stage.inputs(context.config).items()}
        read = {
            "settings": stage.settings(context.config),
            "inputs": inputs,
            "upstream": {item.stage: read_of(item, context) for item in stage.upstream(context.config)},
        }
        for name in OUTPUTS[stage.name]:
            path = context.output_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {json_digest(read)}\n")
        if stage.name == "export":
            upstream = stage.upstream(context.config)
            files = {name: file_digest(context.output_dir / name) for name in OUTPUTS[stage.name][:-1]}
            text = render_lineage(stage.name, context.key, files, upstream, context.manifests)
            (context.output_dir / LINEAGE).write_bytes(text)
        (context.output_dir / "result.json").write_text(json.dumps({"at": time.time_ns()}))
        # As the real stage, which notes the digests of a task's rows.
        parts = {
            name: json_digest([part.settings, [inputs[label] for label in part.inputs]])
            for name, part in stage.parts(context.config).items()
        }
        digests = {name: {"train": f"train {made}", "test": f"test {made}"} for name, made in parts.items()}
        return {"loss": 1.0} | (
            {"digests": dict.fromkeys(("records", "rankings", "links"), digests)} if parts else {}
        )

    return run


def let_others_read(folder: Path) -> None:
    """Gives every user the way to a temporary folder, however deep the test runner put it."""
    top = Path(tempfile.gettempdir()).resolve()
    for path in (folder, *folder.parents):
        if top in path.parents:
            path.chmod(0o755)
