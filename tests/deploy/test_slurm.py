"""Training as Slurm jobs, on a real cluster of one node that the test starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.children.run_child import ChildInputError, ChildKilled, run_child
from flows.configuration.load import load_config
from flows.engine.artifact_store import Store
from flows.engine.run_stage import run_stages
from flows.stages import STAGES
from jora_core.specs.train import TrainSpec
from tests.deploy.slurm_node import CannotStart, slurm_node

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "deploy" / "slurm" / "srun_child.sh"
pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    # Not pytest's folder: its path is too long for the socket of munge.
    folder = Path(tempfile.mkdtemp(prefix="jora-slurm-"))
    try:
        with slurm_node(folder) as environment:
            yield environment
    except CannotStart as why:
        pytest.skip(f"no Slurm here: {why}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def launched(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {**slurm, "JAX_PLATFORMS": "cpu", "JORA_LAUNCHER": str(LAUNCHER)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return monkeypatch


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., TrainSpec]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": f"c{number}",
            "instruction": "Say which line it is.",
            "input": f"#1 bread\n#2 butter {number}\n\nQuestion: butter {number}",
            "output": "line 2",
            "task": "threads",
            "split": "train",
            "context_id": f"c{number}",
            "context_ids": [f"c{number}-1"],
            "oracle_ids": [f"c{number}-1"],
        }
        for number in range(24)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "records.parquet")

    def make(name: str, **changes: Any) -> TrainSpec:
        raw = {
            "model": str(ROOT / "data" / "tiny-llama"),
            "lora": {"r": 4, "lora_alpha": 8},
            "optim": {"learning_rate": 1e-2},
            "data": {
                "records": str(tmp_path / "records.parquet"),
                "max_seq_len": 128,
                "tokens_per_batch": 256,
            },
            "max_steps": 6,
            "checkpoint_every": 2,
            "output_dir": str(tmp_path / name / "out"),
            "checkpoint_dir": str(tmp_path / name / "checkpoints"),
        }
        return TrainSpec.model_validate(raw | changes)

    return make


def jobs() -> str:
    """What Slurm says about its jobs."""
    return subprocess.run(["scontrol", "show", "jobs"], capture_output=True, text=True, check=True).stdout


def adapter(spec: TrainSpec) -> str:
    return hashlib.sha256((Path(spec.output_dir) / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_job_trains_the_same_bits(
    launched: pytest.MonkeyPatch, order: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    lines: list[str] = []
    result = run_child("train", order("slurm"), tmp_path / "slurm", on_line=lines.append)
    assert result["steps"] == 6 and any("step 6/6" in line for line in lines), lines
    assert re.search(r"JobName=jora-\d+\n(?:.*\n){2,12}?.*JobState=COMPLETED", jobs()), jobs()
    launched.delenv("JORA_LAUNCHER")
    run_child("train", order("here"), tmp_path / "here", on_line=lines.append)
    assert adapter(order("slurm")) == adapter(order("here"))


def test_wrong_input_is_one_line(
    launched: pytest.MonkeyPatch, order: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    with pytest.raises(ChildInputError, match="nowhere"):
        run_child("train", order("wrong", model=str(tmp_path / "nowhere")), tmp_path / "wrong", on_line=str)


def test_tasks_join_one_mesh(
    launched: pytest.MonkeyPatch, order: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    launched.setenv("JORA_TRAIN_LAUNCHER", f"{LAUNCHER} --ntasks=2")
    launched.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    mesh = {"data": 2, "tensor": 1}
    run_child("train", order("two", mesh=mesh), tmp_path / "two", on_line=print)
    launched.delenv("JORA_TRAIN_LAUNCHER")
    launched.delenv("JORA_LAUNCHER")
    launched.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    run_child("train", order("one", mesh=mesh), tmp_path / "one", on_line=print)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "out" / "metrics.jsonl").open()]
        for name in ("two", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_preempted_job_resumes_to_the_same_bits(
    launched: pytest.MonkeyPatch, order: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    spec = order("preempted", max_steps=150, checkpoint_every=50)
    path = tmp_path / "train.spec.json"
    path.write_text(spec.model_dump_json())
    # Preemption as Slurm does it: SIGTERM to the tasks of the job, then time to end.
    command = [str(LAUNCHER), sys.executable, "-P", "-m", "jora_core.commands.train", "--spec", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = Path(spec.output_dir) / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 143, said
    assert "ExitCode=143:0" in jobs(), jobs()
    done = log.read_text().count("\n")
    assert done < 150, "it ended by itself"
    lines: list[str] = []
    run_child("train", spec, tmp_path / "again", on_line=lines.append)
    assert any("resuming after step" in line for line in lines), lines
    run_child("train", order("whole", max_steps=150, checkpoint_every=50), tmp_path / "whole", on_line=str)
    assert adapter(spec) == adapter(order("whole", max_steps=150, checkpoint_every=50))


def test_a_batch_job_that_is_queued_again_resumes(
    launched: pytest.MonkeyPatch, order: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    """`deploy/slurm/train.sbatch`, queued again as by preemption, ends with the same bits."""
    spec = order("batch", max_steps=150, checkpoint_every=10)
    path = tmp_path / "train.spec.json"
    path.write_text(spec.model_dump_json())
    launched.setenv("JORA_PYTHON", sys.executable)
    output = tmp_path / "job.txt"
    script = str(ROOT / "deploy" / "slurm" / "train.sbatch")
    command = ["sbatch", "--parsable", f"--output={output}", f"--chdir={ROOT}", script, str(path)]
    job = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def state() -> str:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True)
        return shown.stdout

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 400
        while not condition():
            assert time.monotonic() < deadline, state() + output.read_text()
            time.sleep(0.5)

    kept = Path(spec.checkpoint_dir) / "metrics.jsonl"
    wait(lambda: kept.exists() and kept.read_text().count("\n") > 12)
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait(lambda: "Restarts=1" in state() and "JobState=COMPLETED" in state())
    assert "resuming after step" in output.read_text()
    launched.delenv("JORA_LAUNCHER")
    whole = order("whole", max_steps=150, checkpoint_every=10)
    run_child("train", whole, tmp_path / "whole", on_line=str)
    assert adapter(spec) == adapter(whole)


def test_a_cancelled_job_counts_as_killed(
    launched: pytest.MonkeyPatch, order: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    """`scancel` by an operator: the pipeline runs the stage again, up to its number of retries."""

    def cancel(line: str) -> None:
        if "step " in line:
            subprocess.run(["scancel", "--name", *re.findall(r"JobName=(\S+)", jobs())[-1:]], check=True)

    with pytest.raises(ChildKilled):
        run_child(
            "train", order("cancelled", max_steps=150, checkpoint_every=500), tmp_path / "c", on_line=cancel
        )


def test_the_sample_trains_through_slurm(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stages of the sample with the launcher in the environment: records here, training in a job."""
    changes = (f"store={tmp_path / 'runs'}", "phases.finetune-structure.max_steps=8")
    config = load_config(ROOT / "flows" / "configs" / "sample.yaml", changes)
    before = set(re.findall(r"JobName=jora-\d+", jobs()))
    names = ("build-context", "convert-model", "finetune-structure")
    references = run_stages(names, config, Store(config.store), STAGES)
    assert (Path(references[-1].path) / "adapter_model.safetensors").exists()
    # New names, not their number: Slurm forgets jobs that have ended some minutes ago.
    assert len({*re.findall(r"JobName=jora-\d+", jobs())} - before) == 1, jobs()
