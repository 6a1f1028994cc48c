"""The optional writers: what they write is what metrics.jsonl says; a missing package is one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from jora_core.base.errors import InputError
from jora_core.specs.train import TrainSpec
from jora_core.training.reporting import reporters
from jora_core.training.reporting.reporters import (
    open_reporters,
    report_folder,
    report_outputs,
    require_reporters,
)

ROWS = [
    {"step": n, "loss": 3.0 / n, "learning_rate": 1e-3, **({"validation_loss": 2.5} if n == 3 else {})}
    for n in range(1, 5)
]


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar of a TensorBoard folder by name and step, as TensorBoard would show it."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        content, at = file.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            body = content[at + 12 : at + 12 + size]
            assert int.from_bytes(content[at + 12 + size : at + 16 + size], "little") == masked_crc32c(body)
            event = Event.FromString(body)
            if event.session_log.status == 1:  # START: what came before of these steps is forgotten
                for values in found.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 16 + size
    return found


def test_tensorboard_goes_on_after_a_kill(tmp_path):
    pytest.importorskip("tensorboardX")
    (writer,) = open_reporters(["tensorboard"], tmp_path, "a" * 64, 0, {})
    for row in ROWS:
        writer.write(row | {"loss": 9.0} if row["step"] > 2 else row)
    writer.close()
    (writer,) = open_reporters(["tensorboard"], tmp_path, "a" * 64, 2, {})
    for row in ROWS[2:]:
        writer.write(row)
    writer.close()
    found = events(tmp_path)
    assert found["train/loss"] == pytest.approx({row["step"]: row["loss"] for row in ROWS})
    assert found["validation/loss"] == {3: 2.5}
    assert set(found) == {"train/loss", "train/learning_rate", "validation/loss"}


def test_wandb_offline(tmp_path):
    """A real run without network: its record on disk holds the rows."""
    pytest.importorskip("wandb")
    program = (
        "import sys; from pathlib import Path; from tests.jora_core.training.test_reporters import ROWS;"
        "from jora_core.training.reporting.reporters import open_reporters;"
        "(w,) = open_reporters(['wandb'], Path(sys.argv[1]), 'b' * 64, 0, {'seed': 3});"
        "[w.write(row) for row in ROWS]; w.close()"
    )
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_PROJECT": "tests"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=True, capture_output=True)
    (record,) = tmp_path.glob("wandb/offline-run-*/run-" + "b" * 16 + ".wandb")
    content = record.read_bytes()
    assert content.count(b"validation/loss") >= 1 and content.count(b"train/loss") >= len(ROWS)


def test_mlflow_keeps_curves_settings_lineage_and_files(tmp_path, monkeypatch):
    """A real run in a folder: killed after step 3, resumed from the checkpoint of step 2."""
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = TrainSpec.model_validate(
        {
            "model": "m",
            "data": {"records": "r"},
            "max_steps": 4,
            "report_to": ["mlflow"],
            "output_dir": str(tmp_path / "out"),
            "checkpoint_dir": str(tmp_path / "c"),
        }
    )
    settings, tags = spec.model_dump(mode="json"), {"jora.key": "k" * 64, "jora.upstream.build-context": "b"}
    folder, run_id = report_folder(spec), "c" * 64
    for rows, done in ((ROWS[:3], 0), (ROWS[2:], 2)):
        (writer,) = open_reporters(["mlflow"], folder, run_id, done, settings, tags)
        for row in rows:
            writer.write(row)
        writer.close()
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"weights")
    report_outputs(spec, run_id)
    client = tracking.MlflowClient(tracking_uri=(folder / "mlflow").resolve().as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "jora"]
    (run,) = client.search_runs([experiment.experiment_id])
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(row["step"], row["loss"]) for row in ROWS]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/loss")] == [3]
    assert run.info.status == "FINISHED"
    assert run.data.params["max_steps"] == "4" and run.data.params["data.records"] == "r"
    assert run.data.tags.items() >= tags.items()
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["adapter_model.safetensors"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-store://x")
    with pytest.raises(InputError, match=r"report_to: mlflow: .*MLFLOW_TRACKING_URI"):
        open_reporters(["mlflow"], folder, run_id, 0, settings)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(reporters._MODULES, name, "no_such_package_here")
    assert find_spec("no_such_package_here") is None
    with pytest.raises(InputError, match=rf"{name} needs the package .*pip install 'jora-raft\[{name}\]'"):
        require_reporters([name])


def test_nothing_is_imported_unless_asked():
    program = (
        "import sys, jora_core.training.reporting.reporters; "
        "print({'tensorboardX', 'wandb', 'mlflow', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
