"""A project with documents alone, whose questions a fake teacher makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.run_stage import execute_stage
from flows.stages import STAGES

ROOT = Path(__file__).resolve().parents[3]
PLACES = ("Norwick", "Eastham", "Lowmoor", "Sandgate", "Highbury", "Westport", "Oldcastle", "Millbrook")


def document(number: int, change: str = "") -> dict[str, str]:
    """A document that no other one resembles."""
    place = f"{PLACES[number % len(PLACES)]}{number}"
    text = (
        f"The ferry of {place} leaves from dock number {number * 7 % 1009}. "
        f"Tickets in {place} cost {number * 13 % 997} crowns{change}. "
        f"The captain of {place} is called Morten{number * 31 % 1013}."
    )
    return {"id": f"d{number:04}", "title": f"Ferry of {place}", "text": text}


def write_documents(path: Path, count: int, changed: int | None = None) -> None:
    rows = [document(n, " since May" if n == changed else "") for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def raw_config(folder: Path, url: str, **generate: Any) -> dict[str, Any]:
    teacher = {
        "base_url": url,
        "model": "fake",
        "retry_delay_seconds": 0.01,
        **generate.pop("teacher", {}),
    }
    return {
        "project": "ferries",
        "store": str(folder / "runs"),
        "model": {"path": str(ROOT / "data" / "tiny-llama")},
        "context": {
            "qa": {
                "source": str(folder / "documents.jsonl"),
                "legs": ["bm25"],
                "abstain": True,
                **generate.pop("qa", {}),
                "generate": {"held_out": True, **generate, "teacher": teacher},
            }
        },
        "phases": [
            {"stage": "finetune-task", "tasks": ["qa"], "max_steps": 2, "optim": {"learning_rate": 1e-4}}
        ],
    }


def write_config(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "jora.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def config_of(folder: Path, url: str, **generate: Any) -> PipelineConfig:
    return load_config(write_config(folder, raw_config(folder, url, **generate)))


def run_stage(config: PipelineConfig, name: str = "make-questions", force: bool = False) -> Path:
    return Path(execute_stage(name, config, Store(Path(config.store)), STAGES, force=force).path)


def command(*words: str, **env: str) -> subprocess.Popen[str]:
    """A `jora` command as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
