"""A real small model as teacher, behind the server of llama.cpp and by our own generation, with kills.

The documents are the Markdown pages of docs/. The model is SmolLM2 135M, of which few questions pass the
checks; here it matters that each one is asked for once and has its count.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("py3langid", reason="py3langid is not installed; run `make install`")

from flows.configuration.hub_models import fetched_folder
from flows.teachers.answer_store import FILE
from jora_core.weights.gguf.write_gguf import write_gguf
from jora_core.weights.model_folder import read_model
from tests.flows.teachers.llama_server import SLOTS, counting_proxy, llama_server
from tests.flows.teachers.project import ROOT, command, raw_config, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
CHUNKS, KILLS = 200, 10
SETTINGS: dict[str, Any] = {
    "questions_per_chunk": 1,
    "qa": {"source": str(ROOT / "docs" / "*.md"), "chunk_tokens": 64},
}
_ANSWER_TOKENS = 64


def real_model() -> Path:
    folder = fetched_folder("smollm2-135m")
    if not (folder / "config.json").is_file():
        pytest.skip("smollm2-135m is not fetched; run `jora fetch smollm2-135m`")
    return folder


def stored(folder: Path) -> set[str]:
    """The requests whose answers are stored."""
    path = folder / "runs" / ".cache" / "teachers" / FILE
    if not path.is_file():
        return set()
    with sqlite3.connect(path) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE name = 'answers'").fetchall()
        return {row[0] for row in database.execute("SELECT request FROM answers")} if names else set()


def run_with_kills(
    path: Path, kills: int, wait: Callable[[subprocess.Popen[str], random.Random], None]
) -> Iterator[str]:
    """Run `jora questions`, kill it at random points, and let the last run end.

    Args:
        path: configuration file.
        kills: how often it is killed.
        wait: returns when a process is to be killed; draws the moment.

    Yields:
        The standard error after each kill, and of the last run.
    """
    draws = random.Random(5)
    for kill in range(kills):
        process = command("questions", str(path))
        wait(process, draws)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"run {kill} ended before it was killed: {err}"
        yield err
    last = command("questions", str(path))
    _, err = last.communicate(timeout=3600)
    assert last.returncode == 0, err
    yield err


def after_requests(
    reached: Callable[[], int], most: int
) -> Callable[[subprocess.Popen[str], random.Random], None]:
    """Wait for a random number of requests, and less than a second more.

    Args:
        reached: returns the number of requests so far.
        most: the largest number to wait for.
    """

    def wait(process: subprocess.Popen[str], draws: random.Random) -> None:
        target = reached() + draws.randint(1, most)
        deadline = time.monotonic() + 1800
        while reached() < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(draws.random())

    return wait


def anywhere(folder: Path) -> Callable[[subprocess.Popen[str], random.Random], None]:
    """Wait for some seconds, or for the next stored answer: our own generation answers whole batches.

    Args:
        folder: folder of the project.
    """
    next_answer = after_requests(lambda: len(stored(folder)), 1)

    def wait(process: subprocess.Popen[str], draws: random.Random) -> None:
        if draws.random() < 0.5:
            next_answer(process, draws)
        else:
            time.sleep(draws.uniform(2, 16))

    return wait


def metrics_of(folder: Path) -> dict[str, Any]:
    (made,) = (folder / "runs" / "make-questions").glob("*/manifest.json")
    return {
        **json.loads(made.read_text())["metrics"],
        **json.loads((made.parent / "metrics.json").read_text()),
    }


def accounted(found: dict[str, Any], chunks: int) -> None:
    """Everything that was asked for is a question, or has the count of its reason."""
    asked, counts = found["asked"], found["counts"]
    assert asked["requests"] == asked["answered"] == chunks
    expected = found["documents"]["questions_asked"]
    read = expected - counts.get("drafts_fewer_than_asked", 0)
    assert found["questions"] + sum(found["refused"].values()) == read
    assert found["round_trip"]["all"]["questions"] == found["questions"]
    assert sum(found["answers"].values()) == chunks


def test_behind_llama_cpps_server(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install -e '.[dev]'")
    folder = real_model()
    file = tmp_path / "model.gguf"
    write_gguf(folder, read_model(folder), file, "q8_0", "smollm2")
    with llama_server(file) as server, counting_proxy(server.url) as counted:
        teacher = {
            "model": "smollm2", "max_answer_tokens": _ANSWER_TOKENS, "max_concurrency": SLOTS,
            "timeout_seconds": 600, "answer_attempts": 1,
        }  # fmt: skip
        path = write_config(
            tmp_path, raw_config(tmp_path, counted.url, max_chunks=CHUNKS, teacher=teacher, **SETTINGS)
        )
        kept: list[tuple[set[str], Counter[str]]] = []
        for _ in run_with_kills(path, KILLS, after_requests(counted.requests.total, CHUNKS // KILLS)):
            # Of requests that are stored at a kill, none may come again.
            kept.append((stored(tmp_path), counted.requests.copy()))
        for finished, asked in kept:
            assert [name for name in finished if counted.requests[name] > asked[name]] == []
        found = metrics_of(tmp_path)
        accounted(found, CHUNKS)
        assert stored(tmp_path) == set(counted.requests) and len(counted.requests) == CHUNKS
        # Requests in flight at a kill are made once more each.
        assert counted.requests.total() - CHUNKS <= KILLS * SLOTS
        assert set(counted.statuses) == {200} and counted.with_schema == counted.requests.total()
        assert found["asked"]["structured_output"] is True
        before = counted.requests.total()
        again = command("questions", str(path), "--force")
        _, err = again.communicate(timeout=600)
        assert again.returncode == 0, err
        assert counted.requests.total() == before
    print({"requests": before, "answers stored at each kill": [len(finished) for finished, _ in kept]})
    print(json.dumps(found, indent=1))


def test_by_our_own_generation(tmp_path: Path) -> None:
    teacher = {
        "kind": "local", "base_url": None, "model": None, "model_folder": str(real_model()),
        "max_answer_tokens": _ANSWER_TOKENS, "temperature": 0.0,
    }  # fmt: skip
    path = write_config(tmp_path, raw_config(tmp_path, "", max_chunks=CHUNKS, teacher=teacher, **SETTINGS))
    lines = list(run_with_kills(path, KILLS, anywhere(tmp_path)))
    found = metrics_of(tmp_path)
    accounted(found, CHUNKS)
    # Each request was computed and stored once, whatever was killed.
    with sqlite3.connect(tmp_path / "runs" / ".cache" / "teachers" / FILE) as database:
        (spent,) = database.execute("SELECT count(*) FROM spent").fetchone()
    assert spent == CHUNKS and 0 < found["asked"]["asked"] < CHUNKS
    assert "tokens/s" in lines[-1] and f"ask the teacher: {CHUNKS} of {CHUNKS}" in lines[-1]
    print(lines[-1])
    print(json.dumps(found, indent=1))
