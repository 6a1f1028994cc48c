"""Walk through the folder of a source: hidden files left out, links followed once and only inside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.reading_limits import reading_limits

# Folders that programs keep beside the files of people.
_NOT_OF_PEOPLE = frozenset({"__MACOSX", "__pycache__", "node_modules", "lost+found", "$RECYCLE.BIN"})
_NOT_OF_PEOPLE_FILES = frozenset({"thumbs.db", "desktop.ini"})


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name is left out: hidden, a backup, or a program's own."""
    return (
        name.startswith((".", "~$"))
        or name.endswith("~")
        or name in _NOT_OF_PEOPLE
        or name.lower() in _NOT_OF_PEOPLE_FILES
    )


def walk_folder(root: Path, field: str, left_out: Counter[str]) -> Iterator[Path]:
    """Yield the files below a folder, in an order that does not depend on the file system.

    Links come last. A linked folder is walked unless it was walked before, and a linked file is yielded
    unless the file itself was.

    Args:
        root: the folder.
        field: the setting that names the folder, for errors.
        left_out: counts what is left out, by reason.

    Raises:
        InputError: a folder cannot be read, or a link leads out of the source.
    """
    home = root.resolve()
    seen_folders: set[Path] = set()
    seen_files: set[Path] = set()
    waiting, links = [root], []
    while waiting or links:
        if not waiting:
            link = links.pop(0)
            target = _target(link, home, field)
            if target is None:
                left_out["link_that_leads_nowhere"] += 1
            elif target.is_dir():
                waiting.append(link)
            elif target in seen_files:
                left_out["file_linked_again"] += 1
            elif target.is_file():
                seen_files.add(target)
                yield link
            continue
        folder = waiting.pop()
        place = folder.resolve()
        if place in seen_folders:
            left_out["folder_linked_again"] += 1
            continue
        seen_folders.add(place)
        for entry in _entries(folder, field):
            path = folder / entry.name
            if is_hidden(entry.name):
                left_out["folder_hidden" if entry.is_dir(follow_symlinks=False) else "file_hidden"] += 1
            elif entry.is_symlink():
                links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_file(follow_symlinks=False):
                seen_files.add(place / entry.name)
                yield path


def _entries(folder: Path, field: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{field}: folder {folder} cannot be read ({error.strerror}); change its permissions or leave it "
            "out of the source"
        ) from error


def _target(link: Path, home: Path, field: str) -> Path | None:
    """Return what a link leads to, or None if there is nothing.

    Raises:
        InputError: the target is not in the folder of the source, and that is not allowed.
    """
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return None
    if not target.is_relative_to(home) and not reading_limits().allow_links_outside:
        raise InputError(
            f"{field}: link {link} leads out of the source to {target}; replace it by a copy, or set "
            "context.allow_links_outside to true"
        )
    return target
