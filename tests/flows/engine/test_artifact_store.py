"""The artifact store: all or nothing, every byte proven, one writer a key, and one line when the disk
refuses.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.engine import artifact_store
from flows.engine.artifact_store import MANIFEST, Store, read_manifest
from flows.engine.errors import StageFailed
from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from tests.flows.conftest import let_others_read

STAGE, KEY = "build-context", "a" * 64


def fill(store: Store, text: str = "some records", key: str = KEY) -> Path:
    """Write an artifact of three files."""
    folder = store.begin(STAGE, key)
    (folder / "records.parquet").write_text(text)
    (folder / "empty").write_bytes(b"")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "x.json").write_text("{}")
    return store.commit(
        STAGE, key, {"stage": STAGE, "key": key, "ended": "2024-01-01", "metrics": {"ß": 0.1}}
    )


def everything(folder: Path) -> list[str]:
    """All files below a folder but the empty locks."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_artifact_is_whole_and_described(store: Store) -> None:
    assert not store.check(STAGE, KEY).whole and store.check(STAGE, KEY).damage is None
    folder = fill(store)
    assert folder == store.root / STAGE / KEY
    manifest = store.check(STAGE, KEY).manifest
    assert manifest is not None
    assert set(manifest["outputs"]) == {"records.parquet", "empty", "deep/er/x.json"}
    assert manifest["outputs"]["records.parquet"] == {
        "sha256": file_digest(folder / "records.parquet"),
        "size": 12,
    }
    assert manifest == json.loads((folder / MANIFEST).read_text())
    (index,) = store.indexes(STAGE)
    assert [index.read(row) for row in index.rows] == [manifest]


def test_every_byte_of_every_file_is_proven(store: Store) -> None:
    """Flip one bit at every place of every file, manifest included; times and sizes stay as they were."""
    folder = fill(store)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        good, times = path.read_bytes(), path.stat()
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            path.write_bytes(bad)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            check = store.check(STAGE, KEY)
            assert not check.whole and check.damage == path.relative_to(folder).as_posix()
        path.write_bytes(good)
    assert store.check(STAGE, KEY).whole


def test_missing_and_additional_files_are_damage(store: Store) -> None:
    folder = fill(store)
    (folder / "more").write_text("x")
    assert store.check(STAGE, KEY).damage == "more"
    (folder / "more").unlink()
    (folder / "deep" / "er" / "x.json").unlink()
    assert store.check(STAGE, KEY).damage == "deep/er/x.json"
    (folder / "deep" / "er" / "x.json").symlink_to("/nowhere")
    assert store.check(STAGE, KEY).damage == "deep/er/x.json (no such file or directory)"
    (folder / MANIFEST).unlink()
    assert store.check(STAGE, KEY).damage == MANIFEST


def test_manifest_of_another_key_is_damage(store: Store) -> None:
    shutil.copytree(fill(store), store.path(STAGE, "b" * 64))
    assert store.check(STAGE, "b" * 64).damage == MANIFEST


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seal": "x"}', "null", "\xff"])
def test_no_manifest_is_made_of_nonsense(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert read_manifest(tmp_path / MANIFEST) is None


def test_replacing_an_artifact(store: Store) -> None:
    fill(store, "old")
    folder = fill(store, "new")
    assert (folder / "records.parquet").read_text() == "new"
    assert store.check(STAGE, KEY).whole
    assert not any(store.root.joinpath(".tmp").iterdir())


def test_stage_that_wrote_nothing(store: Store) -> None:
    store.begin(STAGE, KEY)
    with pytest.raises(StageFailed, match="build-context wrote nothing"):
        store.commit(STAGE, KEY, {})
    assert everything(store.root) == []


@pytest.mark.parametrize(
    ("where", "number", "words"),
    [
        ("fsync", errno.ENOSPC, "no space left on device; free some space"),
        ("fsync", errno.EDQUOT, "disk quota exceeded; free some of the quota"),
        ("rename", errno.EACCES, "permission denied; give this user the right"),
        ("rename", errno.EROFS, "read-only file system; choose a folder that can be written"),
    ],
)
def test_disk_that_refuses_is_one_line_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str, number: int, words: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    if where == "fsync":
        monkeypatch.setattr(artifact_store.os, "fsync", refuse)
    else:
        monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError) as caught:
        fill(store)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    assert everything(store.root) == []
    fill(store)
    assert store.check(STAGE, KEY).whole


def test_full_disk(tmp_path: Path) -> None:
    """A real file system of 256 KiB, where this user may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    try:
        store = Store(small / "runs")
        fill(store, "x" * 100_000)
        with pytest.raises(OSError):  # a stage's own writing; the runner turns it into one line
            fill(store, "y" * 200_000, "c" * 64)
        store.abandon(STAGE, "c" * 64)
        folder = store.begin(STAGE, "d" * 64)
        (folder / "fits").write_bytes(bytes(256 * 1024 - 4096 * 8 - 100_000))
        with pytest.raises(InputError, match="no space left on device; free some space"):
            for number in range(100):
                folder = store.begin(STAGE, "e" * 64)
                (folder / "x").write_bytes(b"x")
                store.commit(STAGE, "e" * 64, {"n": "z" * 4096 * number})
        store.abandon(STAGE, "d" * 64)
        assert store.check(STAGE, KEY).whole
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_store_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; choose a folder with --set store=FOLDER"):
        Store(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot write to store .*: not a directory"):
        Store(tmp_path / "file" / "runs").begin(STAGE, KEY)


def _hold(root: str, ready: Any, until: Any) -> None:
    store = Store(root)
    with store.lock(STAGE, KEY):
        (store.begin(STAGE, KEY) / "half").write_text("half")
        ready.set()
        until.wait()


def test_lock_keeps_others_out_until_the_holder_dies(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ready, until = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(store.root), ready, until))
    holder.start()
    assert ready.wait(60)
    waited: list[float] = []
    entered = threading.Event()

    def enter() -> None:
        with store.lock(STAGE, KEY, on_wait=lambda who: waited.append(time.monotonic())):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.3)
    store.sweep()
    assert (store.root / ".tmp" / f"{STAGE}-{KEY}" / "half").exists(), "the holder lives: its folder stays"
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert entered.wait(10)
    thread.join()
    assert len(waited) == 1
    store.sweep()
    assert not (store.root / ".tmp" / f"{STAGE}-{KEY}").exists(), "the holder is dead: nothing half stays"


def test_sweep_keeps_checkpoints_that_somebody_may_come_back_to(store: Store) -> None:
    fresh, old = store.work_dir(STAGE, KEY), store.work_dir(STAGE, "b" * 64)
    for folder in (fresh, old):
        folder.mkdir(parents=True)
        (folder / "checkpoint").write_text("state")
    long_ago = time.time() - 30 * 24 * 3600
    for path in (old / "checkpoint", old):
        os.utime(path, (long_ago, long_ago))
    store.sweep()
    assert fresh.exists() and not old.exists()


def test_looking_writes_nothing(store: Store) -> None:
    store.check(STAGE, KEY)
    assert [index.rows for index in store.indexes(STAGE)] == [[]]
    store.sweep()
    assert not store.root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_no_write_permission(tmp_path: Path) -> None:
    """As a user who may read everything and write nothing."""
    code = (
        "import os, sys; from flows.engine.artifact_store import Store\n"
        "from jora_core.base.errors import InputError\n"
        "os.setuid(65534)\n"
        "try: Store(sys.argv[1]).begin('evaluate', 'k')\n"
        "except InputError as error: print(error)"
    )
    let_others_read(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs")], capture_output=True, text=True, check=True
    )
    assert "permission denied; give this user the right, or choose another folder" in done.stdout
    assert done.stdout.count("\n") == 1
