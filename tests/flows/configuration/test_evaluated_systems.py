"""The list `evaluate.systems`: what is refused, where folders count from, and how adapters are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.configuration.evaluated_systems import VARIANTS, adapter_folders, named_adapter
from jora_core.base.errors import InputError
from jora_core.specs.lora import ADAPTER_FILES
from retrieval.prompts.context_variants import VARIANTS as CHANGED
from tests.flows.conftest import Project


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).write_text("{}")
    return folder


def test_all_but_the_costly_ones_are_scored_by_default(project: Project) -> None:
    wanted = project.config().evaluate
    assert all(wanted.scores(name) for name in ("base", "both_phases", "bm25", "addressed_then_previous"))
    assert tuple(CHANGED) == VARIANTS and not any(wanted.scores(name) for name in VARIANTS)
    named = project.config("evaluate.systems=[base,random,closed_book]").evaluate
    known = ("base", "phase1", "random", "bm25", "closed_book", "shuffled")
    assert list(filter(named.scores, known)) == ["base", "random", "closed_book"]


@pytest.mark.parametrize(
    ("systems", "problem"),
    [
        ("[base,bm26]", "no system 'bm26'; expected one of base, phase1"),
        ("[random,bm25]", "at least one model"),
        ("[base,base]", "two systems are called base"),
        ("[base,base=./other]", "two systems are called base"),
        ("[base,'a b=./other']", "expected NAME=KEY or NAME=FOLDER"),
    ],
)
def test_a_list_that_says_nothing_is_refused(project: Project, systems: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        project.config(f"evaluate.systems={systems}")


def test_folders_count_from_the_file_and_keys_from_the_store(project: Project) -> None:
    project.raw["evaluate"] = {"systems": ["base", "before=./mine", "ab12cd34"]}
    config = project.config()
    folder = project.folder / "mine"
    assert config.evaluate.systems == ["base", f"before={folder}", "ab12cd34"]
    with pytest.raises(
        InputError, match="mine: no adapter there; expected a PEFT folder with adapter_config"
    ):
        adapter_folders(config.evaluate.systems, project.store.root)
    adapter(folder)
    with pytest.raises(InputError, match="ab12cd34: no adapter there"):
        adapter_folders(config.evaluate.systems, project.store.root)
    trained = adapter(project.store.root / "finetune-task" / f"ab12cd34{'0' * 56}")
    assert adapter_folders(config.evaluate.systems, project.store.root) == {
        "before": folder,
        "ab12cd34": trained,
    }
    adapter(project.store.root / "finetune-structure" / f"ab12cd34{'1' * 56}")
    with pytest.raises(InputError, match="2 trainings have this key"):
        adapter_folders(config.evaluate.systems, project.store.root)


def test_an_adapter_without_a_name_is_called_by_its_key_or_folder() -> None:
    key = "ab12cd34ef567890" + "0" * 48
    assert named_adapter(f"/s/runs/finetune-task/{key}")[0] == key[:12]
    assert named_adapter("../adapters/mine")[0] == "mine"
    assert named_adapter("x=../adapters/mine") == ("x", "../adapters/mine")
