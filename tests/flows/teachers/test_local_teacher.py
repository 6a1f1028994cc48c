"""Teachers that run here or behind a real server on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("py3langid", reason="py3langid is not installed; run `make install`")

from flows.configuration.hub_models import fetched_folder
from jora_core.base.errors import InputError
from tests.flows.teachers.project import ROOT, config_of, run_stage, write_documents

CHUNKS = 200


def metrics_of(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {**manifest["metrics"], **json.loads((folder / "metrics.json").read_text())}


def test_a_tiny_model_answers_every_request_once(tmp_path: Path) -> None:
    """Its answers are no questions, which is counted; nothing is asked again."""
    write_documents(tmp_path / "documents.jsonl", 3)
    local = {"kind": "local", "base_url": None, "model": None, "max_answer_tokens": 16}
    config = config_of(tmp_path, "", teacher=local)
    found = metrics_of(run_stage(config))
    assert found["teacher"] == "tiny-llama" and found["questions"] == 0
    assert found["asked"]["answered"] == found["asked"]["asked"] == 3
    assert found["asked"]["unreadable"] == {"no_questions_in_it": 3}
    assert metrics_of(run_stage(config, force=True))["asked"]["asked"] == 0


def test_a_teacher_that_is_no_model_folder(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 3)
    local = {"kind": "local", "base_url": None, "model": None, "model_folder": str(tmp_path)}
    with pytest.raises(InputError, match=r"is no model folder with a config\.json"):
        run_stage(config_of(tmp_path, "", teacher=local))


def real_model() -> Path:
    folder = fetched_folder("smollm2-135m")
    if not (folder / "config.json").is_file():
        pytest.skip("smollm2-135m is not fetched; run `jora fetch smollm2-135m`")
    return folder


def accounted(found: dict[str, Any]) -> None:
    """Everything that was asked for is a question, or has the count of its reason."""
    asked = found["asked"]
    assert asked["requests"] == asked["answered"] == CHUNKS
    expected = found["documents"]["questions_asked"]
    counts = found["counts"]
    read = expected - counts.get("drafts_fewer_than_asked", 0) + counts.get("drafts_more_than_asked", 0)
    refused = sum(found["refused"].values())
    assert found["questions"] + refused + counts.get("drafts_more_than_asked", 0) == read
    assert found["round_trip"]["all"]["questions"] == found["questions"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_real_model_by_our_own_generation(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", CHUNKS)
    local = {
        "kind": "local", "base_url": None, "model": None, "model_folder": str(real_model()),
        "max_answer_tokens": 160, "temperature": 0.0,
    }  # fmt: skip
    accounted(metrics_of(run_stage(config_of(tmp_path, "", questions_per_chunk=1, teacher=local))))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_real_model_behind_llama_cpps_server(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp.server.app", reason="llama-cpp-python[server] is not installed")
    file = next(real_model().parent.glob("*.gguf"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--n_ctx", "2048"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and server.poll() is None:
            try:
                httpx.get(f"{url}/models", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        write_documents(tmp_path / "documents.jsonl", CHUNKS)
        teacher = {
            "model": "smollm2", "max_answer_tokens": 160, "max_concurrency": 1, "timeout_seconds": 600,
            "answer_attempts": 1,
        }  # fmt: skip
        accounted(metrics_of(run_stage(config_of(tmp_path, url, questions_per_chunk=1, teacher=teacher))))
    finally:
        server.kill()
        server.wait()
