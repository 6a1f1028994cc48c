"""The launcher before a child's command, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.children.devices import require_devices
from flows.children.launcher import launch_command
from flows.children.run_child import run_child
from jora_core.base.errors import InputError

COMMAND = ["python", "-m", "something"]


@pytest.mark.parametrize(
    ("module", "environment", "expected"),
    [
        ("train", {}, COMMAND),
        ("train", {"JORA_LAUNCHER": "env -i"}, ["env", "-i", *COMMAND]),
        (
            "train",
            {"JORA_LAUNCHER": "env", "JORA_TRAIN_LAUNCHER": "nice -n 5"},
            ["nice", "-n", "5", *COMMAND],
        ),
        ("predict", {"JORA_LAUNCHER": "env", "JORA_TRAIN_LAUNCHER": "nice"}, ["env", *COMMAND]),
        ("export", {"JORA_LAUNCHER": "env 'A=b c'"}, ["env", "A=b c", *COMMAND]),
        ("check_model", {"JORA_LAUNCHER": "env"}, COMMAND),
        ("flows.children.build_records", {"JORA_LAUNCHER": "env"}, COMMAND),
        ("train", {"JORA_LAUNCHER": "", "JORA_TRAIN_LAUNCHER": ""}, COMMAND),
    ],
)
def test_launcher_is_put_before(module: str, environment: dict[str, str], expected: list[str]) -> None:
    assert launch_command(module, COMMAND, environment) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-program --x", "no program 'no-such-program'"),
        ("env 'open", "No closing quotation"),
        (" ", "''"),
    ],
)
def test_a_wrong_launcher_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"JORA_LAUNCHER.*{message}"):
        launch_command("train", COMMAND, {"JORA_LAUNCHER": text})


class Spec(BaseModel):
    """What the launcher below is asked to do."""

    output_dir: Path


def test_a_child_runs_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\necho "{\\"arguments\\": $#}" > "$OUT/result.json"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("JORA_LAUNCHER", str(launcher))
    monkeypatch.setenv("OUT", str(tmp_path))
    result: dict[str, Any] = run_child("train", Spec(output_dir=tmp_path), tmp_path)
    assert result == {"arguments": 6}  # python -P -m jora_core.commands.train --spec FILE


def test_devices_of_another_machine_are_not_counted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_TRAIN_LAUNCHER", "srun")
    require_devices(4096)
