"""A damaged checkpoint is found before it is read, and the one before it gives the same result."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from jora_core.specs.train import TrainSpec
from jora_core.training.checkpoint_digests import DIGESTS, damage_of, remove_damaged
from jora_core.training.metrics_log import MetricsLog
from jora_core.training.train import train
from tests.flows.damage import KINDS, damage


class Stopped(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


@pytest.fixture()
def stopped(
    tiny_weights: Path, alpaca_rows: Any, write_rows: Any, train_order: Any, tmp_path: Path, monkeypatch: Any
) -> dict[str, Any]:
    """The order of a run that was stopped after step 5, with checkpoints of steps 2 and 4."""
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=6))
    order = train_order(tiny_weights, records, max_steps=6, checkpoint_every=2)
    write = MetricsLog.write

    def deadly(self: MetricsLog, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == 5:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(MetricsLog, "write", deadly)
        train(TrainSpec.model_validate(order), verbose=False)
    return order


def test_every_file_of_a_checkpoint_is_checked(stopped: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(stopped["checkpoint_dir"])
    names = [
        p.relative_to(folder / "steps" / "4") for p in (folder / "steps" / "4").rglob("*") if p.is_file()
    ]
    assert len(names) > 5 and Path(DIGESTS) in names
    for number, name in enumerate(names):
        for kind in KINDS:
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            assert damage_of(copy / "steps" / "4") is None
            damage(copy / "steps" / "4" / name, kind, seed=number)
            (line,) = remove_damaged(copy / "steps", copy / "metrics.jsonl")
            assert "step 4 is damaged" in line
            assert [p.name for p in (copy / "steps").iterdir()] == ["2"]
            rows = (copy / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(row)["step"] for row in rows] == [1, 2]
            shutil.rmtree(copy)


def test_training_goes_on_from_the_checkpoint_before(
    stopped: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = {**stopped, "output_dir": str(tmp_path / "a"), "checkpoint_dir": str(tmp_path / "b")}
    train(TrainSpec.model_validate(whole), verbose=False)
    folder = Path(stopped["checkpoint_dir"])
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)

    def arrays(step: int) -> Path:
        files = [path for path in (folder / "steps" / str(step) / "state").rglob("*") if path.is_file()]
        return max(files, key=lambda path: path.stat().st_size).relative_to(folder)

    log = Path("metrics.jsonl")
    for damaged, step in (([arrays(4)], 2), ([arrays(4), arrays(2)], 0), ([log], 0)):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        for name in damaged:
            # Of the log the first row, which both checkpoints need.
            damage(folder / name, "flip", seed=0, place=40 if name == log else None)
        capfd.readouterr()
        result = train(TrainSpec.model_validate(stopped))
        said = capfd.readouterr().err
        assert (
            said.count("warning: the checkpoint") == len(result["damaged_checkpoints"]) == (1 if step else 2)
        )
        assert f"resuming after step {step} " in said or not step
        made = (Path(stopped["output_dir"]) / "adapter_model.safetensors").read_bytes()
        assert made == (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
        rows = (Path(stopped["output_dir"]) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_best_checkpoint_counts_too(tmp_path: Path) -> None:
    from jora_core.training.checkpoint_digests import CheckpointNeeds, write_digests

    log = tmp_path / "metrics.jsonl"
    log.write_text("a\n")
    for step, best in ((1, 1), (2, 1), (3, 1)):
        folder = tmp_path / "steps" / str(step)
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(os.urandom(64))
        write_digests(folder, CheckpointNeeds.of(log, best))
    damage(tmp_path / "steps" / "1" / "array", "flip", seed=0)
    lines = remove_damaged(tmp_path / "steps", log)
    assert len(lines) == 3 and "its best step 1" in lines[0]
    assert not list((tmp_path / "steps").iterdir())
