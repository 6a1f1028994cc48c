"""Several processes of one mesh that one command starts, also as the launcher of a pipeline's training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.orchestration.serving.small_project import write_project

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = [sys.executable, "-m", "jora_core.parallel.local_processes"]
TELL = """
import os, pathlib, sys
names = ("JORA_COORDINATOR", "JORA_NUM_PROCESSES", "JORA_PROCESS_ID")
pathlib.Path(sys.argv[1], os.environ[names[2]]).write_text(" ".join(os.environ[name] for name in names))
"""


def test_each_process_has_its_place(tmp_path: Path) -> None:
    assert (
        subprocess.run([*LAUNCHER, "3", sys.executable, "-c", TELL, str(tmp_path)], check=False).returncode
        == 0
    )
    told = [(tmp_path / str(number)).read_text().split() for number in range(3)]
    assert [words[1:] for words in told] == [["3", str(number)] for number in range(3)]
    assert len({words[0] for words in told}) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(2 * int(os.environ['JORA_PROCESS_ID']))", 2),
        # The others end with 1, because one was killed; the signal is what counts.
        ("os.environ['JORA_PROCESS_ID'] == '1' and os.kill(os.getpid(), 9); sys.exit(1)", 128 + 9),
    ],
)
def test_status_is_that_of_the_failure(code: str, status: int) -> None:
    command = [*LAUNCHER, "2", sys.executable, "-c", f"import os, sys; {code}"]
    assert subprocess.run(command, check=False).returncode == status


def test_sigterm_goes_to_all(tmp_path: Path) -> None:
    code = f"{TELL}\nimport time\ntime.sleep(600)"
    process = subprocess.Popen([*LAUNCHER, "2", sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("words", [["0", "true"], ["2"], ["two", "true"]])
def test_wrong_words_are_refused(words: list[str]) -> None:
    done = subprocess.run([*LAUNCHER, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("mesh", "devices"), [({"data": 2}, 1), ({"data": 2, "tensor": 2}, 2)])
def test_a_pipeline_trains_in_two_processes(mesh: dict[str, int], devices: int, tmp_path: Path) -> None:
    """The whole pipeline, once with two processes, of which one is killed, and once with one process."""
    write_project(tmp_path / "project")
    settings = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
    settings += ["phases.0.max_steps=12", "phases.0.checkpoint_every=3"]

    def start(store: str, processes: int) -> subprocess.Popen[bytes]:
        changes = [word for change in (*settings, f"store={store}") for word in ("--set", change)]
        each = 2 * devices // processes
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={each}",
            **({"JORA_TRAIN_LAUNCHER": " ".join([*LAUNCHER, "2"])} if processes == 2 else {}),
        }
        with (tmp_path / store).open("wb") as output:
            command = [sys.executable, "-m", "flows.cli", "run", "small.yaml", *changes]
            return subprocess.Popen(
                command, cwd=tmp_path / "project", env=environment, stdout=output, stderr=output
            )

    def adapter(store: str) -> Path:
        (found,) = (tmp_path / "project" / store / "finetune-structure").glob("*/adapter_model.safetensors")
        return found

    def losses(store: str) -> list[float]:
        rows = (adapter(store).parent / "metrics.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, rows) if "loss" in row]

    for store, processes in (("one", 1), ("two", 2)):
        process = start(store, processes)
        assert process.wait(800) == 0, (tmp_path / store).read_text()
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5) and len(losses("two")) == 12

    process = start("killed", 2)
    pattern = f"jora_core.commands.train --spec {tmp_path}/project/killed"
    deadline = time.monotonic() + 400
    while not list((tmp_path / "project" / "killed").rglob("steps/3")):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "killed").read_text()
        time.sleep(0.05)
    subprocess.run(["pkill", "-9", "-n", "-f", pattern], check=True)
    assert process.wait(800) == 0, (tmp_path / "killed").read_text()
    assert adapter("killed").read_bytes() == adapter("two").read_bytes()
