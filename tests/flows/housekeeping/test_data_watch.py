"""A watch over source files: what counts as a change, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.housekeeping.data_watch import Changes, KnownFiles, Watch, read_known, write_known
from tests.flows.damage import KINDS, damage


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(folder: Path, clock: Clock, settle: float = 10) -> Watch:
    return Watch(lambda: {path.name: path for path in sorted(folder.iterdir())}, settle, clock)


def test_a_burst_is_one_change_after_it_has_settled(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    clock = Clock()
    watched = watch(tmp_path, clock)
    assert watched.poll() is None
    for step in range(1, 6):
        clock.now += 5
        (tmp_path / "a").write_text("a" * (step + 1))
        assert watched.poll() is None, "the file still grows"
    (tmp_path / "b").unlink()
    (tmp_path / "d").write_text("new")
    assert watched.poll() is None
    clock.now += 10
    found = watched.poll()
    assert found == Changes(added=("d",), changed=("a",), removed=("b",))
    assert found.in_words() == "1 new (d), 1 changed (a), 1 gone (b)"
    assert watched.poll() is None


def test_a_touched_file_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    clock = Clock()
    watched = watch(tmp_path, clock)
    os.utime(tmp_path / "a", (1, 1))
    assert watched.poll() is None
    clock.now += 10
    assert watched.poll() is None
    (tmp_path / "a").write_text("b")
    watched.poll()
    clock.now += 10
    assert watched.poll() == Changes(changed=("a",))


def test_a_source_that_is_gone_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a").write_text("a")
    clock = Clock()
    watched = watch(folder, clock)
    folder.rename(tmp_path / "away")
    clock.now += 100
    assert watched.poll() is None
    folder.mkdir()
    (folder / "a").write_text("other")
    assert watched.poll() is None
    clock.now += 10
    assert watched.poll() == Changes(changed=("a",))


def test_a_later_watch_goes_on_from_what_is_known(tmp_path: Path) -> None:
    """What changed between two watches is a change, and only files with another size or time are read."""
    folder, path = tmp_path / "corpus", tmp_path / "known.json"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    assert read_known(path) is None
    write_known(path, watch(folder, Clock()).known)
    (folder / "b").write_text("other")
    (folder / "c").unlink()
    (folder / "a").chmod(0)  # whose size and time are the same, so it is not read
    clock = Clock()
    known = read_known(path)
    assert known is not None
    later = Watch(lambda: {item.name: item for item in sorted(folder.iterdir())}, 10, clock, known)
    assert later.poll() is None and later.waiting
    clock.now += 10
    assert later.poll() == Changes(changed=("b",), removed=("c",))
    assert not later.waiting
    write_known(path, later.known)
    assert read_known(path) == later.known


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_of_known_files_makes_all_files_new(tmp_path: Path, kind: str) -> None:
    folder, path = tmp_path / "corpus", tmp_path / "known.json"
    folder.mkdir()
    (folder / "a").write_text("a")
    write_known(path, watch(folder, Clock()).known)
    damage(path, kind, seed=3)
    known = read_known(path)
    assert known == KnownFiles()
    clock = Clock()
    later = Watch(lambda: {"a": folder / "a"}, 10, clock, known)
    later.poll()
    clock.now += 10
    assert later.poll() == Changes(added=("a",))
