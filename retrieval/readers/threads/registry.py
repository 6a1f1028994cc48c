"""Read threads of any format: detect the format of the files and call its reader."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, find_files
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.rows import field_names
from retrieval.readers.threads.thread_reader import ReaderOptions, ThreadReader
from retrieval.settings.tasks import ThreadsTask
from retrieval.settings.thread_formats import FALLBACK_FORMAT, THREAD_FORMATS


def read_threads(task: ThreadsTask, tally: Tally) -> Iterator[Thread]:
    """Read the threads of a task's files, in file order.

    Raises:
        InputError: a source is missing or broken, or its format cannot be detected.
    """
    # Imported by name, because each reader brings its own parser.
    reader: ThreadReader = import_module(THREAD_FORMATS[thread_format(task)].module).read_threads
    return reader(thread_files(task), ReaderOptions(task.missing_parents, task.block), tally)


def thread_format(task: ThreadsTask) -> str:
    """Return the format of a task's files.

    The format is configured, or detected from the file names or the fields of the first file.

    Raises:
        InputError: a source is missing, or the format cannot be detected.
    """
    if task.format != "auto":
        return task.format
    # A dict instead of a set: its order does not change from run to run.
    suffixes = dict.fromkeys(suffix for format in THREAD_FORMATS.values() for suffix in format.suffixes)
    companions = [format.companion for format in THREAD_FORMATS.values() if format.companion]
    files = find_files(task.source, tuple(suffixes), "threads.source", companions)
    for name, format in THREAD_FORMATS.items():
        if format.told_by_name and any(file.name.endswith(format.suffixes) for file in files):
            return name
    by_suffix = [name for name, format in THREAD_FORMATS.items() if files[0].name.endswith(format.suffixes)]
    if len(by_suffix) == 1:  # such as an archive, which only one format has
        return by_suffix[0]
    return _format_by_fields(files[0])


def _format_by_fields(file: SourceFile) -> str:
    telling = {field: name for name, format in THREAD_FORMATS.items() for field in format.telling_fields}
    try:
        fields = field_names(file, tuple(telling))
    except InputError:
        return FALLBACK_FORMAT  # its reader raises an error that describes the fault
    # The first telling field of the file decides, not the first format of the table.
    found = next((telling[field] for field in fields if field in telling), None)
    if found is None and fields:
        raise InputError(
            f"{file.path}: the format cannot be told from the fields {', '.join(fields)[:80]}; set "
            f"threads.format to one of {', '.join(THREAD_FORMATS)}"
        )
    return found or FALLBACK_FORMAT


def thread_files(task: ThreadsTask) -> list[tuple[str, SourceFile]]:
    """Return (split, file) of each of a task's files.

    The split is "" if folder names or the seed decide it.

    Raises:
        InputError: a source is missing, or its format cannot be detected.
    """
    format = THREAD_FORMATS[thread_format(task)]
    # A remote folder is copied by these endings; companions must come along with their files.
    beside = (format.companion,) if format.companion else ()
    sources = [("train" if task.test_source else "", task.source, "threads.source")]
    if task.test_source:
        sources.append(("test", task.test_source, "threads.test_source"))
    return [
        (split, file)
        for split, source, field in sources
        for file in find_files(source, format.suffixes, field, beside)
    ]
