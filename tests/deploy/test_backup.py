"""docs/operations.md: a plain copy of a store is a backup, also if it is taken while a run writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.engine.artifact_store import Store
from flows.engine.plan import make_plan
from flows.engine.run_stage import run_stages
from tests.flows.toy_pipeline import TOY_STAGES, log, toy_config


def copy(source: Path, target: Path) -> Store:
    """The copy of the page: without caches, unfinished artifacts and locks."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".cache", ".tmp", ".locks"))
    return Store(target)


def test_a_copy_is_current_in_another_place(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "project")
    run_stages(TOY_STAGES, config, Store(config.store), TOY_STAGES)
    restored = copy(Path(config.store), tmp_path / "elsewhere")
    assert all(line.action == "cached" for line in make_plan(config, restored, TOY_STAGES))
    references = run_stages(TOY_STAGES, config, restored, TOY_STAGES)
    assert all(item.cached for item in references) and len(log(config)) == len(TOY_STAGES)


def test_a_half_copied_artifact_is_computed_again(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "project")
    run_stages(TOY_STAGES, config, Store(config.store), TOY_STAGES)
    for number, name in enumerate(("out.txt", "manifest.json")):
        restored = copy(Path(config.store), tmp_path / f"copy{number}")
        (artifact,) = (restored.root / "finetune-structure").iterdir()
        (artifact / name).unlink()
        before = len(log(config))
        run_stages(TOY_STAGES, config, restored, TOY_STAGES)
        assert log(config)[before:] == ["finetune-structure"]
        assert (artifact / name).read_bytes()
