"""What is read of a folder: endings in any case, no hidden files, links once and only inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.reading_limits import ReadingLimits, limited_to
from retrieval.corpus.source_files import Survey, find_files, survey_files


def survey(source: Path | str) -> Survey:
    return survey_files(str(source), (".txt", ".md"), "qa.source")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_hidden_files_and_other_kinds_are_left_out_and_counted(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("a.md", "B.TXT", "sub/c.Md", "sub/._c.md", ".ipynb_checkpoints/a.md", "__MACOSX/a.md", "d.md~"),
        *("node_modules/x/readme.md", "~$a.docx", "Thumbs.db", "t.csv", "x.docx", "y.docx", "LICENSE"),
    )
    found = survey(tmp_path)
    assert [file.name for file in found.files] == ["B.TXT", "a.md", "sub/c.Md"]
    assert found.left_out == {
        "file_hidden": 4,
        "folder_hidden": 3,
        "file_of_other_kind.csv": 1,
        "file_of_other_kind.docx": 2,
        "file_of_other_kind.(no ending)": 1,
    }
    # A folder that is hidden itself is read if it is named.
    assert [file.name for file in find_files(str(tmp_path / "__MACOSX"), (".md",), "qa.source")] == ["a.md"]
    globbed = survey(tmp_path / "**" / "*.md")
    assert [file.name for file in globbed.files] == ["a.md", "sub/c.Md"] or os.name == "posix"
    assert globbed.left_out["file_hidden"] >= 3


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = make(tmp_path / "src", "a/one.md", "b/two.md")
    (root / "again").symlink_to(root / "a")
    (root / "a" / "loop").symlink_to(root)
    (root / "copy.md").symlink_to(root / "b" / "two.md")
    (root / "gone.md").symlink_to(root / "nothing")
    found = survey(root)
    assert [file.name for file in found.files] == ["a/one.md", "b/two.md"]
    assert found.left_out == {"folder_linked_again": 2, "file_linked_again": 1, "link_that_leads_nowhere": 1}


def test_links_out_of_the_source_need_permission(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "secret.md", "deep/other.md")
    root = make(tmp_path / "src", "a.md")
    (root / "s.md").symlink_to(outside / "secret.md")
    (root / "deep").symlink_to(outside / "deep")
    with pytest.raises(InputError, match=r"leads out of the source.*context\.allow_links_outside"):
        survey(root)
    with limited_to(ReadingLimits(allow_links_outside=True)):
        assert [file.name for file in survey(root).files] == ["a.md", "deep/other.md", "s.md"]
    # The source itself may be a link.
    (tmp_path / "linked").symlink_to(outside)
    assert len(survey(tmp_path / "linked").files) == 2


def test_a_source_without_files_says_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "a.docx", "b.docx", "c.csv")
    with pytest.raises(
        InputError, match=r"no file found.*found instead: 3 files of other kinds \(2 \.docx, 1 \.csv\)"
    ):
        survey(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        survey(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "locked/b.md")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(InputError, match=r"locked cannot be read \(Permission denied\)"):
            survey(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)
