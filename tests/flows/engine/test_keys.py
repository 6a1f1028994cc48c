"""Keys: equal content gives equal keys, and code is followed through its imports."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from flows.engine.code_files import reachable_sources
from flows.engine.keys import digest_inputs, digest_reads, identify
from flows.stages import STAGES
from jora_core.base.digests import canonical_json, file_digest, json_digest
from jora_core.base.errors import InputError
from retrieval.settings.legs import LEGS, leg_modules
from retrieval.settings.task_registry import build_modules, scoring_modules
from tests.flows.conftest import Project


def test_key_is_the_digest_of_the_canonical_parts(project: Project) -> None:
    """Recomputed here from the stage's declaration, with nothing of `flows.engine.keys`."""
    config = project.config()
    identities = identify(config, project.registry)
    stage = project.registry["finetune-task"]
    parts = {
        "stage": "finetune-task",
        "version": stage.version,
        "config": stage.settings(config),
        "inputs": {},
        "upstream": {
            "build-context": {"threads": identities["build-context"].parts["threads"]},
            **{name: identities[name].key for name in ("convert-model", "finetune-structure")},
        },
        "code": {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in stage.sources().items()
        },
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert identities["finetune-task"].key == hashlib.sha256(text.encode()).hexdigest()


def test_until_stops_early(project: Project) -> None:
    assert list(identify(project.config(), project.registry, until="convert-model")) == [
        "build-context",
        "convert-model",
    ]


def test_canonical_json() -> None:
    assert canonical_json({"b": [1.5, None], "a": "ß"}) == '{"a":"ß","b":[1.5,null]}'
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_reads_select_outputs() -> None:
    outputs = {name: {"sha256": name, "size": 1} for name in ("a.parquet", "b.parquet", "log.json")}
    changed = {**outputs, "log.json": {"sha256": "other", "size": 1}}
    assert digest_reads({"outputs": outputs}, ("*.parquet",)) == digest_reads(
        {"outputs": changed}, ("*.parquet",)
    )
    assert digest_reads({"outputs": outputs}, ("*",)) != digest_reads({"outputs": changed}, ("*",))


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^corpus: no such file: .*/gone$"):
        digest_inputs({"corpus": tmp_path / "gone"})
    with pytest.raises(InputError, match=r"^corpus: not a file"):
        digest_inputs({"corpus": tmp_path})
    (tmp_path / "x").write_text("x")
    assert digest_inputs({"corpus": tmp_path / "x"}) == {"corpus": file_digest(tmp_path / "x")}


def test_settings_are_json_and_hold_no_path(project: Project) -> None:
    config = project.config()
    for stage in STAGES.values():
        text = canonical_json(stage.settings(config))
        assert str(project.folder) not in text
        assert "/" not in text


def test_code_is_followed_through_imports(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("room/__init__.py", "def __getattr__(name):\n    from room import lazy_face\n")
    write("room/lazy_face.py", "")
    write("room/entry.py", "from room.part import f\nimport os, other.thing\n")
    write("room/part.py", "def f():\n    from .sub import deep\n")
    write("room/sub/__init__.py", "")
    write("room/sub/deep.py", "from ..cousin import x\n")
    write("room/cousin.py", "x = 1\n")
    write("room/unrelated.py", "")
    write("other/__init__.py", "")
    write("other/thing.py", "")
    found = reachable_sources(["room.entry"], ("room",), tmp_path)
    names = ("__init__", "cousin", "entry", "part", "sub/__init__", "sub/deep")
    assert list(found) == [f"room/{name}.py" for name in names]


def test_entry_that_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"room\.entry"):
        reachable_sources(["room.entry"], ("room",), tmp_path)


def _file(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


def test_parts_of_the_records_cover_their_code_and_inputs(project: Project) -> None:
    """Each file and module of the build belongs to the part of a task; a reader of threads to one only."""
    stage, config = STAGES["build-context"], project.config()
    parts = stage.parts(config)
    assert list(parts) == ["tables", "threads", "qa"]
    assert {name for part in parts.values() for name in part.sources} == set(stage.sources())
    assert {name for part in parts.values() for name in part.inputs} == set(stage.inputs(config))
    with_irc = [name for name, part in parts.items() if "retrieval/readers/threads/irc.py" in part.sources]
    assert with_irc == ["threads"]


def test_stages_know_their_code() -> None:
    """No stage depends on another's entry: a change of the export trains nothing again."""
    code = {name: set(stage.sources()) for name, stage in STAGES.items()}
    assert {
        "retrieval/build/build.py",
        "retrieval/search/bm25/index.py",
        "retrieval/search/legs/recency.py",
        "flows/stages/build_context.py",
    } <= code["build-context"]
    legs = {f"{module.replace('.', '/')}.py" for module in leg_modules()}
    assert len(legs) == len(LEGS) and legs <= code["build-context"] and not legs & code["finetune-task"]
    assert {
        "jora_core/training/train.py",
        "jora_core/weights/adapter_folder.py",
        "flows/stages/finetune.py",
    } <= code["finetune-task"]
    readers_and_tasks = {"retrieval/readers/threads/irc.py", "retrieval/tasks/qa/task.py"}
    assert readers_and_tasks <= set(map(_file, build_modules()))
    assert set(map(_file, build_modules())) <= code["build-context"]
    assert set(map(_file, scoring_modules())) <= code["evaluate"]
    assert not {
        name for name in code["evaluate"] if name.startswith(("retrieval/search", "retrieval/readers"))
    }
    assert {
        "jora_core/commands/predict.py",
        "retrieval/evaluation/answer_scores.py",
        "retrieval/build/record_files.py",
    } <= code["evaluate"]
    assert (
        "jora_core/commands/export.py" in code["export"]
        and "jora_core/commands/check_model.py" in code["convert-model"]
    )
    for stage in ("finetune-structure", "finetune-task"):
        assert (
            not {
                "jora_core/commands/export.py",
                "jora_core/commands/predict.py",
                "retrieval/search/bm25/index.py",
            }
            & code[stage]
        )
    core = {name for name in code["build-context"] if name.startswith("jora_core/")}
    assert all(name == "jora_core/__init__.py" or name.startswith("jora_core/base/") for name in core)
