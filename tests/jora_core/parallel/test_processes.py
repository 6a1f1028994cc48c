"""Two processes with two virtual devices each, joined over Gloo, train what one process with four trains."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jora_core.base.errors import InputError
from jora_core.parallel.processes import join_processes


def start(order: dict[str, Any], folder: Path, processes: int, devices: int) -> list[subprocess.Popen[str]]:
    """Start the processes of one order; each has its own file, as each host would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    started = []
    for number in range(processes):
        place = {"coordinator_address": address, "num_processes": processes, "process_id": number}
        path = folder / f"spec{number}.json"
        path.write_text(json.dumps(order | ({"distributed": place} if processes > 1 else {})))
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "jora_core.commands.train", "--spec", str(path)],
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [status] * len(started), said
    return said


def until_steps(first: subprocess.Popen[str], order: dict[str, Any], steps: int) -> None:
    """Wait until so many steps are logged."""
    log = Path(order["output_dir"]) / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") >= steps):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.1)


def rows(order: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (Path(order["output_dir"]) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture()
def order(tiny_weights, alpaca_rows, write_rows, train_order, tmp_path) -> dict[str, Any]:
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=16))
    order = train_order(
        tiny_weights,
        records,
        mesh={"data": 2, "tensor": 2},
        max_steps=6,
        checkpoint_every=4,
        evaluate_every=3,
        keep_best=True,
        gradient_accumulation_steps=2,
        data={
            "tokens_per_batch": 512,
            "validation_share": 0.2,
            "cache_dir": str(tmp_path / "tokens"),
        },
    )
    del order["compilation_cache_dir"]
    return order


def test_two_processes_train_what_one_trains(order, tmp_path):
    alone = order | {"output_dir": str(tmp_path / "a"), "checkpoint_dir": str(tmp_path / "ac")}
    finish(start(alone, tmp_path, 1, 4))
    first, second = finish(start(order, tmp_path, 2, 2))
    assert "step 6/6" in first and "step" not in second, "one process speaks"
    for name in ("loss", "grad_norm", "validation_loss"):
        found, wanted = ([row[name] for row in rows(o) if name in row] for o in (order, alone))
        assert len(found) >= 2 and found == pytest.approx(wanted, rel=1e-5), name
    theirs, ours = (load_file(Path(o["output_dir"]) / "adapter_model.safetensors") for o in (alone, order))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-4)

    # A step is lost on both: they go on together, from the checkpoint before, with the same bits.
    adapter = (Path(order["output_dir"]) / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(Path(order["checkpoint_dir"]) / "steps" / "6")
    shutil.rmtree(order["output_dir"])
    first, _ = finish(start(order, tmp_path, 2, 2))
    assert "resuming after step 4" in first
    assert (Path(order["output_dir"]) / "adapter_model.safetensors").read_bytes() == adapter
    assert [row["step"] for row in rows(order)] == [1, 2, 3, 4, 5, 6]


def test_sigterm_to_one_stops_all_at_one_step(order, tmp_path):
    order = order | {"max_steps": 100_000, "checkpoint_every": 100_000, "evaluate_every": 100_000}
    started = start(order, tmp_path, 2, 2)
    until_steps(started[0], order, 2)
    started[1].send_signal(signal.SIGTERM)
    first, _ = finish(started, status=143)
    assert "stopped by SIGTERM after step" in first
    (step,) = (int(path.name) for path in (Path(order["checkpoint_dir"]) / "steps").iterdir())
    assert step == len(rows(order))


def test_what_does_not_fit_is_said_in_one_line(order, tmp_path):
    with pytest.raises(InputError, match="JORA_NUM_PROCESSES is not set; set JORA_COORDINATOR"):
        join_processes(None, {"JORA_COORDINATOR": "host:1", "JORA_PROCESS_ID": "0"})
    with pytest.raises(InputError, match="process_id 2 must be below num_processes 2"):
        values = {"JORA_COORDINATOR": "host:1", "JORA_NUM_PROCESSES": "2", "JORA_PROCESS_ID": "2"}
        join_processes(None, values)
    said = finish(start(order | {"mesh": {"data": 1, "tensor": 2}}, tmp_path, 2, 2), status=2)
    assert all("error: mesh of 2 devices, but 2 processes have 4" in text for text in said)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line(order, tmp_path, killed):
    order = order | {"max_steps": 100_000, "checkpoint_every": 100_000, "evaluate_every": 100_000}
    started = start(order, tmp_path, 2, 2)
    until_steps(started[0], order, 2)
    started[killed].kill()
    # The wait ends by a closed connection, of Gloo or of the watch.
    said = started[1 - killed].communicate(timeout=60)[1]
    if killed == 0 and "error:" not in said:
        # The first process is also the coordinator: JAX's client may notice its end first, and aborts.
        assert started[1].returncode == -signal.SIGABRT and "another task died" in said
        return
    (line,) = (text for text in said.splitlines() if text.startswith("error:"))
    assert f"process {1 - killed} of 2 lost another one" in line and "start all of them again" in line
    assert "Traceback" not in said and started[1 - killed].returncode == 1
