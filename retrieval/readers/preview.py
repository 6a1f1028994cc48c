"""Show the first rows of a file as they will be read, and propose the mapping of columns for a table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, expand_path, find_files
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.documents.documents import layout_of
from retrieval.readers.files.columns import NEEDED, column_names, first_rows, guess, kind_of, proposal
from retrieval.readers.tables.table_preview import table_settings
from retrieval.readers.threads.registry import read_threads, thread_format
from retrieval.settings.columns import DocumentColumns, QuestionColumns, ThreadColumns
from retrieval.settings.document_layouts import DEFAULT_LAYOUT, TEXT_SUFFIXES
from retrieval.settings.file_suffixes import TABLE_SUFFIXES
from retrieval.settings.tasks import ThreadsTask

_ROWS = 5
_WIDTH = 100
_MAPPINGS = {"threads": ThreadColumns, "documents": DocumentColumns, "questions": QuestionColumns}


def preview(source: str) -> list[str]:
    """Return the lines that describe a file: its format, its first rows as read, and what to configure.

    Raises:
        InputError: the file does not exist, is broken, or is of a kind that cannot be read.
    """
    path = Path(expand_path(source, "--preview"))
    if not path.exists():
        raise InputError(f"--preview: {path} does not exist; expected a file or a folder")
    if path.is_file() and path.suffix.lower() in TEXT_SUFFIXES and not path.name.endswith(".txt"):
        return _configured("documents", str(path), [f"{path}: a document; give its folder as the source"])
    task = ThreadsTask(source=str(path))
    refused: InputError | None = None
    try:
        format = thread_format(task)
        known = format != "4chan" or _reads(task)
    except InputError as error:
        known, format, refused = False, "", error
    if known:
        threads = islice(read_threads(task.model_copy(update={"missing_parents": "drop"}), Tally()), 3)
        lines = [f"{path}: conversations in the format {format}", *_posts(threads)]
        return _configured("threads", str(path), lines)
    file = _first(path, TABLE_SUFFIXES)
    if file is None and (document := _first(path, TEXT_SUFFIXES)) is not None and path.is_dir():
        found = f"{path}: documents, such as {document.name}; each file is one"
        return _configured("documents", str(path), [found])
    if file is None:
        raise refused or InputError(f"--preview: {path} holds no table; expected {', '.join(TABLE_SUFFIXES)}")
    return _table(path, file, refused)


def _reads(task: ThreadsTask) -> bool:
    """Return whether the fallback format really reads a source."""
    try:
        return (
            next(iter(read_threads(task.model_copy(update={"missing_parents": "drop"}), Tally())), None)
            is not None
        )
    except InputError:
        return False


def _first(path: Path, suffixes: tuple[str, ...]) -> SourceFile | None:
    if path.is_file():
        return SourceFile(path, path.name) if path.name.lower().endswith(suffixes) else None
    try:
        return find_files(str(path), suffixes, "--preview")[0]
    except InputError:
        return None


def _table(path: Path, file: SourceFile, refused: InputError | None) -> list[str]:
    names = column_names(file.path)
    if not names:
        raise refused or InputError(f"{file.path}: has no rows; expected at least one")
    layout = layout_of(file)
    # A file of a known layout may have columns that look like tables.
    about = table_settings(file, names) if layout == DEFAULT_LAYOUT else None
    if about is not None:
        what, lines, settings = about
        lines = [f"{file.path}: {what}", *(f"  {line}" for line in lines), "", "context:", "  tables:"]
        return [*lines, *(f"    {line}" for line in settings)]
    if layout != DEFAULT_LAYOUT or ({"id", "text"} <= set(names) and kind_of(names) != "threads"):
        lines = [f"{file.path}: documents and questions in the layout {layout}"]
        return _configured("documents", str(path), [*lines, *_shown(first_rows(file.path, _ROWS))])
    kind = kind_of(names)
    found = guess(names, kind)
    lines = [f"{file.path}: a table with the columns {', '.join(names)[:300]}"]
    missing = [name for name in NEEDED[kind] if name not in found]
    if missing:
        lines += [f"no column is likely to be {', '.join(missing)}; the first rows:"]
        lines += _shown(first_rows(file.path, _ROWS))
    else:
        lines += [f"most likely {kind}; the first rows, as they are read with the mapping below:"]
        lines += _shown(first_rows(file.path, _ROWS, _MAPPINGS[kind](**found)))
    return _configured(kind, str(path), lines, proposal(file.path, kind))


def _configured(kind: str, source: str, lines: list[str], mapping: str = "") -> list[str]:
    """Return lines with the part of a configuration that reads the source.

    Args:
        kind: "threads", "documents" or "questions".
        source: the file or folder.
        lines: what was found.
        mapping: the mapping of columns as YAML.
    """
    section = "threads" if kind == "threads" else "qa"
    key = {"threads": "columns", "documents": "columns", "questions": "question_columns"}[kind]
    configured = [
        "context:",
        f"  {section}:",
        f"    {'questions' if kind == 'questions' else 'source'}: {source}",
    ]
    return [*lines, "", *configured, *([f"    {key}: {mapping}"] if mapping else [])]


def _posts(threads: Iterator[Thread]) -> Iterator[str]:
    posts = ((thread, post) for thread in threads for post in thread.posts)
    for thread, post in islice(posts, _ROWS):
        parents = f" answers {', '.join(post.parents)}" if post.parents else ""
        yield f"  [{thread.id}] {post.id}{parents} · {post.author}: {post.text[:_WIDTH]}"


def _shown(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield "  " + " · ".join(
            f"{name}: {str(value)[:60]!r}" for name, value in row.items() if value is not None
        )
