"""From what the config calls a source to files: expansion, stable names, digests."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import is_url, local_copy
from retrieval.settings.context import ContextConfig
from retrieval.settings.file_suffixes import ROW_SUFFIXES, TEXT_SUFFIXES
from retrieval.settings.tasks import QaTask, TablesTask

_GLOB = re.compile(r"[*?\[]")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


@dataclass(frozen=True)
class SourceFile:
    """A file to read; `name` is its path below the source and stays the same when the corpus moves."""

    path: Path
    name: str


def _tables_copy(url: str, field: str) -> str:
    """The local copy of a tables folder, or of the folder around one of its .tsv files."""
    kinds = (".csv", ".tsv")
    if not url.endswith(".tsv"):
        return expand_path(url, field, kinds)
    root, folder, name = url.rsplit("/", 2)
    return str(Path(expand_path(root, field, kinds)) / folder / name)


def unpacked_name(path: Path) -> str:
    """A file's name without the suffix of its packing."""
    return path.name.removesuffix(".gz").removesuffix(".zst")


def document_files(task: QaTask) -> list[SourceFile]:
    """The files of a question task's documents.

    Raises:
        InputError: nothing is there.
    """
    return find_files(task.source, (*ROW_SUFFIXES, *TEXT_SUFFIXES), "qa.source")


def question_files(task: QaTask) -> list[SourceFile]:
    """The files of its questions: those of the documents where none are named, as in SQuAD and HotpotQA.

    Raises:
        InputError: nothing is there.
    """
    if task.questions is None:
        return document_files(task)
    return find_files(task.questions, ROW_SUFFIXES, "qa.questions")


def expand_path(text: str, field: str, suffixes: Sequence[str] = ()) -> str:
    """`~` and `$VARIABLES` filled in; of a URL, the local copy (of a folder, what ends in `suffixes`).

    Raises:
        InputError: the text is empty, names a variable that is not set, or a URL that cannot be read.
    """
    expanded = os.path.expandvars(text.strip())
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
    """The files of a source (file, folder, or glob; also by URL), sorted by name.

    A folder is searched to any depth for `suffixes`; a file named outright may end in anything.

    Args:
        source: file, folder, glob or URL, as configured.
        suffixes: endings of the files that are returned.
        field: the configuration's field, for errors.
        beside: endings of further files that a copy of a remote folder must hold.

    Raises:
        InputError: nothing is there.
    """
    text = expand_path(source, field, (*suffixes, *beside))
    path = Path(text)
    if path.is_file():
        return [SourceFile(path, path.name)]
    if path.is_dir():
        root, found = path, (p for p in path.rglob("*") if p.name.endswith(tuple(suffixes)))
    elif _GLOB.search(text):
        root = _fixed_root(path)
        found = root.glob(path.relative_to(root).as_posix())
    else:
        raise InputError(f"{field}: {text} does not exist; expected a file, folder or glob")
    files = sorted(
        (SourceFile(p, p.relative_to(root).as_posix()) for p in found if p.is_file()), key=lambda f: f.name
    )
    if not files:
        kinds = ", ".join(suffixes)
        raise InputError(f"{field}: no file found in {text}; expected files ending in {kinds}")
    return files


def _fixed_root(pattern: Path) -> Path:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if _GLOB.search(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()


def table_files(task: TablesTask) -> list[tuple[str, Path, Path]]:
    """(split, root, tsv) of a table task; split is "" where the seed decides.

    Raises:
        InputError: the folder or its .tsv is missing.
    """
    wanted = [("train" if task.test_source else "", task.source, "tables.source")]
    if task.test_source:
        wanted.append(("test", task.test_source, "tables.test_source"))
    out = []
    for split, source, field in wanted:
        path = Path(_tables_copy(source, field) if is_url(source) else expand_path(source, field))
        tsv = path / "data" / "training.tsv" if path.is_dir() else path
        if not tsv.is_file():
            raise InputError(f"{field}: {tsv} does not exist; expected WikiTableQuestions' layout or a .tsv")
        out.append((split, tsv.resolve().parent.parent if not path.is_dir() else path, tsv))
    return out


def tokenizer_folder(config: ContextConfig) -> Path:
    """The folder of the tokenizer that counts.

    Raises:
        InputError: none is given.
    """
    if not config.tokenizer:
        raise InputError("context.tokenizer is empty, but tokens are to be counted; give the model's folder")
    return Path(expand_path(config.tokenizer, "context.tokenizer"))
