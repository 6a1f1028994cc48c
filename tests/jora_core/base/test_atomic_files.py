"""Folders that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from jora_core.base.atomic_files import atomic_folder


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "made"
    with atomic_folder(folder) as making:
        (making / "a.txt").write_text("a")
        assert not folder.exists()
    assert (folder / "a.txt").read_text() == "a" and list(folder.parent.iterdir()) == [folder]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_folder(tmp_path / "made") as making:
        (making / "a.txt").write_text("a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with atomic_folder(folder) as slow:
        (slow / "a.txt").write_text("slow")
        with atomic_folder(folder) as quick:
            (quick / "a.txt").write_text("quick")
    assert (folder / "a.txt").read_text() == "quick" and list(tmp_path.iterdir()) == [folder]


def test_a_file_of_that_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("a file")
    with pytest.raises(OSError), atomic_folder(tmp_path / "made"):
        pass
