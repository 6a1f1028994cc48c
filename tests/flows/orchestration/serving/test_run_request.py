"""The configuration of a request: refused at once where a change would fail a stage hours later."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.configuration.sample import SAMPLE_CONFIG
from flows.orchestration.serving.run_request import RunRequest
from jora_core.base.errors import InputError


def request(path: Path, *changes: str) -> RunRequest:
    return RunRequest(str(path), list(changes), None, force=False, dry_run=False)


def test_only_problems_of_the_changes_are_refused(tmp_path: Path) -> None:
    assert request(SAMPLE_CONFIG, "seed=7").settings().seed == 7
    with pytest.raises(InputError, match=r"^changes: mesh\.tensor: 7 does not divide num_attention_heads"):
        request(SAMPLE_CONFIG, "mesh.tensor=7").settings()
    # `jora serve` has warned of what the file itself lacks; the worker's machine may have it.
    wide = tmp_path / "wide.yaml"
    sample = SAMPLE_CONFIG.read_text().replace("root: ../..", f"root: {SAMPLE_CONFIG.parents[2]}")
    wide.write_text(f"{sample}\nmesh: {{tensor: 7}}\n")
    assert request(wide, "seed=7").settings().mesh.tensor == 7
