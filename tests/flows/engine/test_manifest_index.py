"""The index of manifests finds what a search through all manifests finds, whatever happened to either."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.engine.artifact_store import Store, is_sealed, render_manifest
from flows.engine.keys import Identity
from flows.engine.manifest_index import MANIFEST, WORTH_WRITING
from flows.engine.plan import count_differences, nearest
from jora_core.base.digests import text_digest

STAGE = "finetune-task"
CONFIG: dict[str, Any] = {
    "seed": 0,
    "flag": True,
    "optim": {"rate": 1e-4, "decay": 0.0, "schedule": {}},
    "tasks": ["threads", "qa"],
    "early": None,
    "lora": {"rank": 8, "targets": ["q", "v"], "dropout": None},
}


def identity(**changes: Any) -> Identity:
    parts: dict[str, Any] = {
        "stage": STAGE,
        "version": 1,
        "config": CONFIG,
        "inputs": {name: text_digest(name) for name in ("a", "b", "c")},
        "paths": {name: f"data/{name}.txt" for name in ("a", "b", "c")},
        "upstream": {"build-context": "k1", "convert-model": "k2"},
        "reads": (),
        "code": {f"code/{number}.py": text_digest(str(number)) for number in range(5)},
        "upstream_parts": {"build-context": {"threads": "p1"}},
        "project": "ours",
    }
    return Identity(**{**parts, **changes})


def manifest_of(what: Identity, second: int) -> dict[str, Any]:
    return {
        "stage": what.stage,
        "key": f"{second:064x}",
        "version": what.version,
        "project": what.project,
        "config": what.config,
        "inputs": {
            name: {"path": what.paths[name], "sha256": digest} for name, digest in what.inputs.items()
        },
        "upstream": {
            name: {"key": key, "digest": "", "reads": [], "parts": dict(what.upstream_parts.get(name, {}))}
            for name, key in what.upstream.items()
        },
        "code": dict(what.code),
        "metrics": {},
        "outputs": {"x": {"sha256": "", "size": 3}},
        "started": "2026-01-01T00:00:00+00:00",
        "ended": f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000+00:00",
        "seconds": 1.5,
    }


def changed(draw: random.Random, made: dict[str, Any]) -> dict[str, Any]:
    """A manifest with one more difference."""
    made = copy.deepcopy(made)
    config = made["config"]
    match draw.randrange(15):
        case 0:
            config["seed"] = draw.choice([1, 0.0, False, 7, None])
        case 1:
            config["optim"] = {**CONFIG["optim"], "rate": draw.choice([1e-4, 2e-4])}
        case 2:
            config["early"] = {"patience": draw.randrange(3), "share": {"a": 1, "b": {}}}
        case 3:
            config["optim"] = draw.choice([None, {}, {"rate": 1e-4}])
        case 4:
            config["tasks"] = draw.choice([["threads"], ["qa", "threads"], {}])
        case 5:
            config.pop(draw.choice(sorted(config)))
        case 6:
            config["old"] = {"a": 1, "b": None}
        case 7:
            made["inputs"].pop("a", None)
        case 8:
            made["inputs"]["b"] = {"path": "data/b.txt", "sha256": text_digest("other")}
        case 9:
            made["inputs"]["gone"] = {"path": "data/gone.txt", "sha256": text_digest("gone")}
        case 10:
            made["upstream"]["build-context"]["parts"]["threads"] = "p2"
        case 11:
            made["upstream"]["convert-model"]["key"] = "k3"
        case 12:
            made["code"]["code/1.py"] = "x"
        case 13:
            made["version"] = 2
        case _:
            made["flag"] = 1
    return made


def broken(draw: random.Random, made: dict[str, Any]) -> dict[str, Any]:
    """A manifest of another format or project."""
    made = copy.deepcopy(made)
    match draw.randrange(9):
        case 0:
            made["project"] = "theirs"
        case 1:
            del made["project"]
        case 2:
            del made["upstream"]
        case 3:
            made["inputs"]["a"] = {"sha256": text_digest("a")}
        case 4:
            made["inputs"] = ["a"]
        case 5:
            made["config"] = None
        case 6:
            made["upstream"]["convert-model"] = "k2"
        case 7:
            made["ended"] = None
        case _:
            del made["outputs"]
    return made


def write(store: Store, made: dict[str, Any], *, seal: bool = True) -> Path:
    folder = store.root / STAGE / made["key"]
    folder.mkdir(parents=True, exist_ok=True)
    data = render_manifest(made)
    (folder / MANIFEST).write_bytes(data if seal else data.replace(b'"seconds": 1.5', b'"seconds": 1.6'))
    return folder


def slow_nearest(store: Store, what: Identity) -> dict[str, Any] | None:
    """The reference: reads all manifests, the newest first."""
    found = []
    for path in sorted((store.root / STAGE).glob(f"*/{MANIFEST}")):
        try:
            manifest = json.loads(path.read_bytes())
        except ValueError:
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("ended"), str) and is_sealed(manifest):
            differences = count_differences(manifest, what)
            if differences is not None:
                found.append((differences, manifest))
    found.sort(key=lambda item: item[1]["ended"], reverse=True)
    return min(found, key=lambda item: item[0])[1] if found else None


def fill(store: Store, seed: int, count: int) -> random.Random:
    draw = random.Random(seed)
    for second in range(count):
        made = manifest_of(identity(), second)
        for _ in range(draw.randrange(1, 5)):
            made = changed(draw, made)
        if draw.random() < 0.25:
            made = broken(draw, made)
        write(store, made, seal=draw.random() < 0.8)
    return draw


def questions(draw: random.Random) -> list[Identity]:
    one = replace(identity(), config=changed(draw, manifest_of(identity(), 0))["config"])
    return [
        identity(),
        one,
        identity(version=2, project=""),
        identity(project="theirs"),
        identity(inputs={"a": text_digest("other")}, paths={"a": "a"}),
        identity(config={**CONFIG, "seed": False, "early": {"patience": 1}}),
        identity(upstream_parts={}),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_index_finds_what_a_search_of_all_finds(tmp_path: Path, seed: int) -> None:
    store = Store(tmp_path)
    draw = fill(store, seed, 2 * WORTH_WRITING)
    index = store.cache_dir / "manifests" / f"{STAGE}.json"

    def same() -> None:
        for what in questions(draw):
            expected = slow_nearest(store, what)
            assert nearest(what, store) == expected
            # The other way of counting gives the same number for each manifest.
            assert expected is None or count_differences(expected, what) is not None

    same()
    assert index.is_file()
    written = index.read_bytes()
    same()
    assert index.read_bytes() == written, "written once"
    # Artifacts go, come and change after the index was written.
    folders = sorted((store.root / STAGE).iterdir())
    for folder in draw.sample(folders, 20):
        shutil.rmtree(folder)
    for second in range(5000, 5010):
        write(store, changed(draw, manifest_of(identity(), second)))
    for folder in draw.sample(sorted((store.root / STAGE).iterdir()), 20):
        (folder / MANIFEST).unlink()
        write(store, {**changed(draw, manifest_of(identity(), draw.randrange(4000))), "key": folder.name})
    same()
    # Damage of the index: any bit.
    data = bytearray(written)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    index.write_bytes(data)
    same()
    index.write_bytes(b"")
    same()


def test_flip_in_a_manifest_with_the_times_of_before_is_noticed(tmp_path: Path) -> None:
    """The seal of the manifest that is found is checked, so an unnoticed change cannot explain a reason."""
    store = Store(tmp_path)
    for second in range(WORTH_WRITING + 1):
        write(store, changed(random.Random(second), manifest_of(identity(), second)))
    best = write(store, manifest_of(identity(), 4000))
    found = nearest(identity(), store)
    assert found is not None and found["key"] == best.name
    path = best / MANIFEST
    state = path.stat()
    path.write_bytes(path.read_bytes().replace(b"code/1.py", b"code/9.py"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = nearest(identity(), store)
    assert after == slow_nearest(store, identity()) and after is not None and after["key"] != best.name


def test_small_store_gets_no_index(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, manifest_of(identity(), 1))
    assert nearest(identity(), store) is not None
    assert [path.name for path in tmp_path.iterdir()] == [STAGE]
