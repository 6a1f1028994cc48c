"""Resolve the sources of a configuration to files, with names that do not depend on the machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_variables
from retrieval.corpus.folder_walk import is_hidden, walk_folder
from retrieval.corpus.remote_sources import cache_folder, is_url, local_copy, with_home
from retrieval.corpus.unpacking import PACKED_ENDINGS, unpacked_zip
from retrieval.settings.columns import Columns
from retrieval.settings.file_suffixes import DATASET_FILES
from retrieval.text.left_out import counted_reasons, other_kind

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        path: where it is.
        name: its path below the source, which stays the same when the corpus is moved.
        columns: the mapping of its columns; None if they have the names that readers expect.
        columns_field: the setting that holds the mapping, for errors.
    """

    path: Path
    name: str
    columns: Columns | None = None
    columns_field: str = ""


def unpacked_name(path: Path) -> str:
    """Return a file's name in small letters, without the ending of its packing."""
    name = path.name.lower()
    ending = next((ending for ending in (*PACKED_ENDINGS, ".zip") if name.endswith(ending)), "")
    return name.removesuffix(ending)


def expand_path(text: str, field: str, suffixes: Sequence[str] = ()) -> str:
    """Return a configured path with `~` and `$VARIABLES` filled in, or the local copy of a URL.

    Args:
        text: path or URL.
        field: the setting that holds the text, for errors.
        suffixes: endings of the files that are fetched from a remote folder.

    Raises:
        InputError: the text is empty, a variable is not set, or the URL cannot be read.
    """

    def missing(name: str) -> InputError:
        return InputError(
            f"{field}: environment variable {name} in {text!r} is not set; set it or write the path"
        )

    expanded = expand_variables(text.strip(), missing)
    if not expanded:
        raise InputError(f"{field}: the path is empty; give a file, folder or glob")
    return local_copy(expanded, field, suffixes) if is_url(expanded) else str(with_home(expanded, field))


@dataclass(frozen=True)
class Survey:
    """The files of a source, sorted by name, and what was left out of it, by reason."""

    files: list[SourceFile]
    left_out: Counter[str]


def find_files(
    source: str, suffixes: Sequence[str], field: str, beside: Sequence[str] = ()
) -> list[SourceFile]:
    """Return the files of a source, sorted by name. See `survey_files`.

    Args:
        source: file, folder, glob or URL, as configured.
        suffixes: endings of the files that are returned.
        field: the setting that holds the source, for errors.
        beside: endings of further files that a copy of a remote folder must hold.

    Raises:
        InputError: the source has no files.
    """
    return survey_files(source, suffixes, field, beside).files


def survey_files(source: str, suffixes: Sequence[str], field: str, beside: Sequence[str] = ()) -> Survey:
    """Return the files of a source, sorted by name, and what was left out of it.

    A source is a file, a folder, a `.zip` archive or a glob, locally or by URL. A folder is searched to any
    depth for `suffixes`, in small or capital letters. Hidden files and folders are left out. A source that is
    one file may have any ending.

    Args:
        source: file, folder, glob or URL, as configured.
        suffixes: endings of the files that are returned.
        field: the setting that holds the source, for errors.
        beside: endings of further files that belong to the source but are not returned.

    Raises:
        InputError: the source has no files, a folder cannot be read, or a link leads out of the source.
    """
    text = expand_path(source, field, (*suffixes, *beside))
    path = Path(text)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(
            f"{field}: {text:.200} cannot be read ({error.strerror}); correct the path"
        ) from error
    left_out: Counter[str] = Counter()
    # Before globs: a file's own name may contain `[` or `?`.
    if is_file and not _is_zip(path):
        return Survey([SourceFile(path, path.name)], left_out)
    if is_file:
        root, found = path.parent, [path]
    elif is_folder:
        root, found = path, walk_folder(path, field, left_out)
    elif _GLOB.search(text):
        root = _fixed_root(path)
        found = _matched(root, path.relative_to(root).as_posix(), left_out)
    else:
        raise InputError(
            f"{field}: {text} does not exist; expected a file, folder or glob; correct the path, or a "
            "variable in it"
        )
    files = []
    for p in found:
        name = p.relative_to(root).as_posix()
        if _is_zip(p):
            folder, others = unpacked_zip(p, (*suffixes, *beside), cache_folder() / "zips")
            left_out.update(others)
            prefix = "" if is_file else f"{name}/"
            inner = (q for q in folder.rglob("*") if q.is_file())
            # The companions of an archive's files lie beside them in its folder.
            inner = (q for q in inner if q.name.lower().endswith(tuple(suffixes)))
            files += [SourceFile(q, prefix + q.relative_to(folder).as_posix()) for q in inner]
        elif not is_folder or p.name.lower().endswith(tuple(suffixes)):
            files.append(SourceFile(p, name))
        elif not p.name.lower().endswith(tuple(beside) or ("\0",)):
            left_out[other_kind(p)] += 1
    if not files:
        raise InputError(
            f"{field}: no file found in {text}; expected files ending in {_endings(suffixes)}"
            + (f"; found instead: {counted_reasons(left_out)}" if left_out else "")
        )
    # By name below the source: the order of the file system differs between machines.
    return Survey(sorted(files, key=lambda file: file.name), left_out)


def mapped_files(files: Sequence[SourceFile], columns: Columns, field: str) -> list[SourceFile]:
    """Return files with a mapping of their columns, without what the library `datasets` writes beside them.

    Args:
        files: the files of a source.
        columns: the mapping.
        field: the setting that holds the mapping, for errors.
    """
    kept = [file for file in files if file.path.name not in DATASET_FILES]
    return [replace(file, columns=columns, columns_field=field) for file in kept or files]


def _endings(suffixes: Sequence[str]) -> str:
    """Return the endings of files that are read, for an error; those of packed files are one remark."""
    plain = [suffix for suffix in suffixes if not suffix.endswith(PACKED_ENDINGS)]
    packed = f" (also packed: {', '.join(PACKED_ENDINGS)})" if len(plain) < len(suffixes) else ""
    return f"{', '.join(plain)}{packed}"


def _is_zip(path: Path) -> bool:
    return path.name.lower().endswith(".zip")


def _matched(root: Path, pattern: str, left_out: Counter[str]) -> Iterator[Path]:
    """Yield the files that a glob matches, without hidden ones that the pattern does not name."""
    named = any(part.startswith(".") for part in pattern.split("/"))
    for path in root.glob(pattern):
        if not path.is_file():
            continue
        if not named and any(is_hidden(part) for part in path.relative_to(root).parts):
            left_out["file_hidden"] += 1
        else:
            yield path


def _fixed_root(pattern: Path) -> Path:
    """Return the part of a glob before its first wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if _GLOB.search(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()
