"""A store that an earlier version of this package wrote: it is read, nothing of it is taken for current.

The manifests are those of a run of the sample at commit fec5d18, where all files of the code had other names.
Only the metrics of `build-context` are shortened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from flows.engine.artifact_store import Store
from flows.engine.plan import make_plan, select
from flows.engine.run_stage import run_stages
from flows.engine.stage import CHECKPOINTS
from flows.stages import STAGES
from tests.flows.changes import ALL
from tests.flows.conftest import Project

OLD: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("manifests_of_fec5d18.json").read_text(encoding="utf-8")
)


def old_manifest_text(manifest: dict[str, Any]) -> str:
    """What commit fec5d18 writes: the seal is the SHA-256 of the canonical JSON of the rest."""
    canonical = json.dumps(
        manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    sealed = {**manifest, "seal": hashlib.sha256(canonical.encode()).hexdigest()}
    return json.dumps(sealed, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def write_old_store(root: Path) -> Path:
    """Write the six manifests, and the work folder of a training that was killed."""
    for stage, manifest in OLD.items():
        folder = root / stage / manifest["key"]
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(old_manifest_text(manifest), encoding="utf-8")
    checkpoint = root / ".work" / "finetune-task" / OLD["finetune-task"]["key"] / CHECKPOINTS / "step_40"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.safetensors").write_bytes(b"of another version")
    return checkpoint


def test_newest_manifest_of_an_old_store(tmp_path: Path) -> None:
    write_old_store(tmp_path)
    store = Store(tmp_path)
    assert set(OLD) == set(ALL)
    for stage, manifest in OLD.items():
        (index,) = store.indexes(stage)
        (row,) = index.rows
        found = index.read(row)
        assert row.regular and found is not None
        assert {name: found[name] for name in manifest} == manifest


def test_plan_over_an_old_store_says_that_the_code_changed(tmp_path: Path) -> None:
    write_old_store(tmp_path)
    plan = make_plan(load_config(SAMPLE_CONFIG), Store(tmp_path), STAGES)
    for line in plan:
        assert line.action == "run" and line.key != OLD[line.name]["key"]
        # Of the records, several defaults have changed since, and settings stand before code.
        if line.name == "build-context":
            assert line.reason.startswith("config changed: ") and " more settings; " in line.reason, line
        # One reason for all files, after those for settings and inputs.
        assert "code changed: " in line.reason and " more files" in line.reason, line
        assert line.reason.count("code changed") == 1


def test_old_checkpoints_are_not_resumed(project: Project) -> None:
    checkpoint = write_old_store(project.folder / "runs")
    stage = project.registry["finetune-task"]
    seen: list[bool] = []

    def run(context: Any) -> dict[str, Any]:
        seen.append((context.work_dir / CHECKPOINTS).exists())
        return stage.run(context)

    project.registry["finetune-task"] = replace(stage, run=run)
    config = project.config()
    done = run_stages(select(config, project.registry), config, project.store, project.registry)
    assert [reference.cached for reference in done] == [False] * len(ALL)
    assert seen == [False]
    assert (checkpoint / "state.safetensors").read_bytes() == b"of another version"


def test_old_artifact_under_a_current_key_is_damaged(project: Project) -> None:
    """A folder that was renamed by hand does not become an artifact."""
    config = project.config()
    (line, *_) = make_plan(config, project.store, project.registry)
    folder = project.folder / "runs" / line.name / line.key
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(old_manifest_text(OLD[line.name]), encoding="utf-8")
    (line, *_) = make_plan(config, project.store, project.registry)
    assert (line.action, line.reason) == ("run", "artifact damaged: manifest.json")
