"""A killed run that is started again ends with the same bits as one that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jora_core.specs.train import TrainSpec
from jora_core.training.loop import Interrupted
from jora_core.training.metrics_log import MetricsLog
from jora_core.training.train import train

STEPS = 14

# The command with a knife: the process kills itself the moment it has logged a given step, while the
# checkpoint before may still be on its way to the disk.
_KILLED_AFTER = """
import os, sys
from jora_core.commands import train
from jora_core.commands.run_command import run_command
from jora_core.training import metrics_log
write = metrics_log.MetricsLog.write
def deadly(self, row):
    write(self, row)
    if row["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
metrics_log.MetricsLog.write = deadly
run_command(train.TrainSpec, train.main, sys.argv[1:3])
"""


@pytest.fixture()
def order(tiny_weights, alpaca_rows, write_rows, train_order, tmp_path) -> dict[str, Any]:
    """Packing, sharing, dropout and accumulation at once, over more than one epoch."""
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=16))
    return train_order(tiny_weights, records, max_steps=STEPS, gradient_accumulation_steps=2)


def run(order: dict[str, Any], path: Path, kill_after: int | None = None) -> subprocess.CompletedProcess[str]:
    path.write_text(json.dumps(order))
    program = ["-m", "jora_core.commands.train", "--spec", str(path)]
    if kill_after is not None:
        program = ["-c", _KILLED_AFTER, "--spec", str(path), str(kill_after)]
    return subprocess.run([sys.executable, *program], capture_output=True, text=True)


def outcome(order: dict[str, Any]) -> tuple[bytes, list[tuple[int, float]]]:
    folder = Path(order["output_dir"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "adapter_model.safetensors").read_bytes(), [(r["step"], r["loss"]) for r in rows]


def test_kill_at_random_steps_changes_nothing(order, tmp_path, capfd):
    whole = order | {
        "output_dir": str(tmp_path / "whole"),
        "checkpoint_dir": str(tmp_path / "whole-checkpoints"),
    }
    train(TrainSpec.model_validate(whole))
    spec = tmp_path / "spec.json"
    for number, step in enumerate(sorted(random.Random(5).sample(range(1, STEPS), 4))):
        # A new output folder each time, as a stage has that writes under a temporary name.
        broken = order | {"output_dir": str(tmp_path / f"out{number}")}
        done = run(broken, spec, kill_after=step)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (Path(broken["output_dir"]) / "result.json").exists()
    # What a kill in the middle of writing leaves behind is not read.
    (Path(order["checkpoint_dir"]) / "steps" / "13.orbax-checkpoint-tmp").mkdir()
    done = run(order, spec)
    assert done.returncode == 0 and "resuming after step" in done.stderr, done.stderr
    assert outcome(order) == outcome(whole)
    # Steps that were run twice stand in the log once.
    assert [step for step, _ in outcome(order)[1]] == list(range(1, STEPS + 1))
    kept = sorted(p.name for p in (Path(order["checkpoint_dir"]) / "steps").iterdir())
    assert kept == ["12", "14"]

    # Done is done: once more resumes at the end and writes the same; another seed starts anew and says so.
    capfd.readouterr()
    train(TrainSpec.model_validate(order))
    assert "resuming after step 14" in capfd.readouterr().err
    assert outcome(order) == outcome(whole)
    train(TrainSpec.model_validate(order | {"seed": 1, "max_steps": 1}))
    said = capfd.readouterr().err
    assert "starting anew" in said and "another spec" in said
    assert [step for step, _ in outcome(order)[1]] == [1]


def test_sigterm_saves_and_leaves_with_143(order, tmp_path):
    order = order | {"max_steps": 100_000, "checkpoint_every": 100_000}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(order))
    child = subprocess.Popen(
        [sys.executable, "-m", "jora_core.commands.train", "--spec", str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Path(order["output_dir"]) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.05)
    child.terminate()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143, errors
    assert "stopped by SIGTERM after step" in errors
    steps = [int(p.name) for p in (Path(order["checkpoint_dir"]) / "steps").iterdir()]
    assert steps == [len(log.read_text().splitlines())]


class Stopped(BaseException):
    """Stands for a kill in this process: nothing in the loop may catch it."""


@pytest.mark.slow
def test_twenty_random_stops_end_with_the_same_bits(order, tmp_path, monkeypatch):
    """Packing, sharing, dropout, accumulation and prefetch; stops at checkpoints' steps and between them."""
    order = order | {"max_steps": 10, "checkpoint_every": 4}
    whole = {
        **order,
        "output_dir": str(tmp_path / "whole"),
        "checkpoint_dir": str(tmp_path / "whole-checkpoints"),
    }
    result = train(TrainSpec.model_validate(whole), verbose=False)
    assert result["microbatches_first_epoch"] < 20, "the run must go on into a second epoch"
    rng = random.Random(11)
    steps = [rng.randint(1, 9) for _ in range(20)]
    assert {4, 8} & set(steps) and set(steps) - {4, 8}
    write = MetricsLog.write
    for number, step in enumerate(steps):
        broken = {
            **order,
            "output_dir": str(tmp_path / f"out{number}"),
            "checkpoint_dir": str(tmp_path / f"checkpoints{number}"),
        }

        def deadly(self: MetricsLog, row: dict[str, Any], step: int = step) -> None:
            write(self, row)
            if row["step"] == step:
                raise Stopped

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(MetricsLog, "write", deadly)
            train(TrainSpec.model_validate(broken), verbose=False)
        train(TrainSpec.model_validate(broken), verbose=False)
        assert outcome(broken) == outcome(whole), f"stopped after step {step}"


def test_sigterm_between_checkpoints_goes_on_with_the_same_bits(order, tmp_path, monkeypatch, capfd):
    order = order | {
        "max_steps": 8,
        "checkpoint_every": 5,
        "data": {**order["data"], "validation_share": 0.2},
    }
    whole = {
        **order,
        "output_dir": str(tmp_path / "whole"),
        "checkpoint_dir": str(tmp_path / "whole-checkpoints"),
    }
    train(TrainSpec.model_validate(whole))
    write = MetricsLog.write

    def signalled(self: MetricsLog, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(MetricsLog, "write", signalled)
        train(TrainSpec.model_validate(order))
    assert caught.value.code == 143
    assert "stopped by SIGTERM after step" in capfd.readouterr().err
    rows = [json.loads(x) for x in (Path(order["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) < 5 and not any("validation_loss" in row for row in rows), "no time for an evaluation"
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    train(TrainSpec.model_validate(order))
    assert outcome(order) == outcome(whole)


def test_rows_of_other_tasks_change_nothing(order, alpaca_rows, write_rows, tmp_path):
    """A changed task leaves the training of the others alone: the same bits, tokens and checkpoints."""
    mine = [{**row, "task": "tables"} for row in alpaca_rows(contexts=8)]
    other = [
        {**row, "task": "threads", "id": f"t-{row['id']}", "context_id": f"t-{row['context_id']}"}
        for row in alpaca_rows(contexts=9, seed=3)
    ]
    outcomes, tokens = [], []
    for name, rows in (("alone", mine), ("between", [*other[:9], *mine, *other[9:]])):
        records = write_rows(tmp_path / "records.parquet", rows)
        data = {
            **order["data"],
            "records": str(records),
            "tasks": ["tables"],
            "cache_dir": str(tmp_path / "tokens"),
            "validation_share": 0.2,
        }
        changed = {**order, "data": data, "max_steps": 3, "output_dir": str(tmp_path / name)}
        spec = TrainSpec.model_validate(changed)
        train(spec, verbose=False)
        outcomes.append((outcome(changed), (Path(spec.checkpoint_dir) / "digest").read_text()))
        tokens.append(sorted(path.name for path in (tmp_path / "tokens").glob("*.arrow")))
    assert outcomes[0] == outcomes[1]
    assert tokens[0] == tokens[1] and len(tokens[0]) == 1
