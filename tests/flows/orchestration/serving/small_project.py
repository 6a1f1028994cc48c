"""A project of six documents that trains for seconds, served as a user serves it; for tests and scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows.orchestration.prefect_server import free_port

ROOT = Path(__file__).resolve().parents[4]
START_SECONDS = 900  # of a machine that also runs other work
PRICES = {"lamp": 12, "kettle": 30, "radio": 45, "chair": 60, "clock": 25, "carpet": 90}
TEST_SHARE = 0.3
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class SmallProject:
    """A served project: its folder, the address of its API, and what `jora serve` printed."""

    folder: Path
    api_url: str

    @property
    def output(self) -> str:
        """What `jora serve` and its runs have printed so far."""
        return (self.folder / "serve.log").read_text()

    @property
    def form(self) -> str:
        """Address of the run form."""
        return next(line.split()[-1] for line in self.output.splitlines() if line.startswith("Run form:"))


def write_project(folder: Path) -> Path:
    """Write the documents, the questions and the configuration; return its path."""
    (folder / "docs").mkdir(parents=True)
    questions = []
    for name, price in PRICES.items():
        text = f"The {name}. The {name} of the shop costs {price} euro.\n"
        (folder / "docs" / f"{name}.md").write_text(text)
        question = {"id": f"q-{name}", "document_id": f"{name}.md", "question": f"What does the {name} cost?"}
        questions.append(json.dumps({**question, "answers": [f"{price} euro"]}))
    (folder / "questions.jsonl").write_text("\n".join(questions) + "\n")
    sizes = {"max_steps": 3, "max_seq_len": 256, "tokens_per_batch": 512, "checkpoint_every": 50}
    config = {
        "model": {"path": str(ROOT / "data" / "tiny-llama")},
        "context": {
            "test_share": TEST_SHARE,
            "near_duplicates": "off",
            "qa": {"source": "docs", "questions": "questions.jsonl", "legs": ["bm25"], "n_contexts": 2},
        },
        "phases": [{"stage": "finetune-structure", "tasks": ["qa"], **sizes}],
        "evaluate": {"max_records": 0, "qa_max_records": 2, "max_new_tokens": 4},
        "export": {"verify": False},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@contextmanager
def serving(folder: Path, *arguments: str, given: Mapping[str, str] = NOTHING) -> Iterator[SmallProject]:
    """Serve a project during the block.

    Args:
        folder: folder of the project, or of its store; made here unless the project is already there.
        arguments: configuration and options of `jora serve`; none serve the small project.
        given: environment variables beside those of this process.
    """
    if arguments:
        folder.mkdir(parents=True)
    elif not folder.exists():
        write_project(folder)
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**kept, "PREFECT_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), **given}
    served = arguments or ("small.yaml",)
    command = [sys.executable, "-m", "flows.cli", "serve", *served, "--port", str(port)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    project = SmallProject(folder, f"http://127.0.0.1:{port}/api")
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C ends" not in project.output:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(project.output)
            time.sleep(0.2)
        yield project
    finally:
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()
