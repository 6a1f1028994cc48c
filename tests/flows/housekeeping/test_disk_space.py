"""A run is refused before it starts if the disk has too little room."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from flows.housekeeping.disk_space import LEAST_BYTES, bytes_needed, require_space
from jora_core.base.errors import InputError
from tests.flows.conftest import Project


def test_a_full_disk_is_refused_with_what_is_missing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.folder / "model" / "model.safetensors").write_bytes(bytes(10**6))
    config = project.config()
    assert bytes_needed(config, ["evaluate"]) == LEAST_BYTES
    assert bytes_needed(config, ["finetune-task", "export"]) == LEAST_BYTES + 1_050_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**7))
    with pytest.raises(InputError, match=r"needs about 0\.07 GB, 0\.01 GB are free; free 0\.06 GB more"):
        require_space(config, project.store, ["export"])
    require_space(config, project.store, [])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**9))
    require_space(config, project.store, ["export"])
    assert not project.store.root.exists(), "a check creates no folder"
