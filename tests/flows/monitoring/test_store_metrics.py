"""The metrics of a store that a pipeline has filled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from flows.engine.artifact_store import Store
from flows.monitoring.store_metrics import StoreMetrics, main
from jora_core.base.digests import file_digest


def add_artifact(root: Path, stage: str, key: str, content: bytes, **metrics: object) -> Path:
    """Commit an artifact with one file."""
    store = Store(root)
    folder = store.begin(stage, key)
    (folder / "out.bin").write_bytes(content)
    outputs = {"out.bin": {"sha256": file_digest(folder / "out.bin"), "size": len(content)}}
    times = {"started": "2026-11-28T20:00:00+00:00", "ended": "2026-11-28T20:01:00+00:00", "seconds": 60.0}
    return store.commit(
        stage, key, {"stage": stage, "key": key, "metrics": metrics, "outputs": outputs, **times}
    )


def registry(root: Path) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(StoreMetrics(root))
    return made


def test_manifests_become_metrics(tmp_path: Path) -> None:
    add_artifact(tmp_path, "build-context", "a" * 64, bytes(10))
    damaged = add_artifact(tmp_path, "build-context", "b" * 64, bytes(20))
    score = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}
    add_artifact(tmp_path, "evaluate", "c" * 64, b"x", systems={"both_phases": {"reply@1": score}})
    found = registry(tmp_path)

    def value(name: str, **labels: str) -> float | None:
        return found.get_sample_value(name, labels)

    assert value("jora_artifacts", stage="build-context") == 2
    assert value("jora_artifact_bytes", stage="build-context") == 30
    assert value("jora_stage_seconds", stage="evaluate") == 60
    assert value("jora_stage_last_success_timestamp_seconds", stage="evaluate") == 1795896060
    assert value("jora_evaluation", system="both_phases", measure="reply@1") == 0.7
    assert value("jora_artifacts", stage="export") == 0
    (damaged / "manifest.json").write_text("{")
    assert value("jora_artifacts", stage="build-context") == 1
    assert value("jora_artifacts_unreadable", stage="build-context") == 1


def test_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_artifact(tmp_path, "build-context", "a" * 64, bytes(10))
    assert main([str(tmp_path)]) == 0
    assert 'jora_artifacts{stage="build-context"} 1.0' in capsys.readouterr().out


def test_no_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"error: no store at {json.loads(json.dumps(str(tmp_path)))}")
