"""Resolve the sources of a configuration to files, with names that do not depend on the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import is_url, local_copy
from retrieval.settings.context import ContextConfig

_GLOB = re.compile(r"[*?\[]")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    `name` is the path of the file below the source, which stays the same when the corpus is moved.
    """

    path: Path
    name: str


def unpacked_name(path: Path) -> str:
    """Return a file's name without the ending of its compression."""
    return path.name.removesuffix(".gz").removesuffix(".zst")


def expand_path(text: str, field: str, suffixes: Sequence[str] = ()) -> str:
    """Return a configured path with `~` and `$VARIABLES` filled in, or the local copy of a URL.

    Args:
        text: path or URL.
        field: the setting that holds the text, for errors.
        suffixes: endings of the files that are fetched from a remote folder.

    Raises:
        InputError: the text is empty, a variable is not set, or the URL cannot be read.
    """
    expanded = os.path.expandvars(text.strip())
    # `expandvars` leaves an unknown variable as it is, which would then be looked for as a folder of that
    # name.
    left = _VARIABLE.search(expanded)
    if left:
        name = left[1].strip("{}")
        raise InputError(
            f"{field}: environment variable {name} in {text!r} is not set; set it or write the path"
        )
    if not expanded:
        raise InputError(f"{field}: the path is empty; give a file, folder or glob")
    return local_copy(expanded, field, suffixes) if is_url(expanded) else str(Path(expanded).expanduser())


def find_files(
    source: str, suffixes: Sequence[str], field: str, beside: Sequence[str] = ()
) -> list[SourceFile]:
    """Return the files of a source, sorted by name.

    A source is a file, a folder or a glob, locally or by URL. A folder is searched to any depth for
    `suffixes`. A source that is one file may have any ending.

    Args:
        source: file, folder, glob or URL, as configured.
        suffixes: endings of the files that are returned.
        field: the setting that holds the source, for errors.
        beside: endings of further files that a copy of a remote folder must hold.

    Raises:
        InputError: the source has no files.
    """
    text = expand_path(source, field, (*suffixes, *beside))
    path = Path(text)
    # Before globs: a file's own name may contain `[` or `?`.
    if path.is_file():
        return [SourceFile(path, path.name)]
    if path.is_dir():
        root, found = path, (p for p in path.rglob("*") if p.name.endswith(tuple(suffixes)))
    elif _GLOB.search(text):
        root = _fixed_root(path)
        found = root.glob(path.relative_to(root).as_posix())
    else:
        raise InputError(f"{field}: {text} does not exist; expected a file, folder or glob")
    # By name below the source: the order of the file system differs between machines.
    files = sorted(
        (SourceFile(p, p.relative_to(root).as_posix()) for p in found if p.is_file()), key=lambda f: f.name
    )
    if not files:
        kinds = ", ".join(suffixes)
        raise InputError(f"{field}: no file found in {text}; expected files ending in {kinds}")
    return files


def _fixed_root(pattern: Path) -> Path:
    """Return the part of a glob before its first wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if _GLOB.search(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()


def tokenizer_folder(config: ContextConfig) -> Path:
    """Return the folder of the tokenizer that counts tokens.

    Raises:
        InputError: none is configured.
    """
    if not config.tokenizer:
        raise InputError("context.tokenizer is empty, but tokens are to be counted; give the model's folder")
    return Path(expand_path(config.tokenizer, "context.tokenizer"))
