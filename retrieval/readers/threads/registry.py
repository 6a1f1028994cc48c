"""Read threads of any format: detect the format of the files and call its reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, Survey, survey_files
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.rows import field_names
from retrieval.readers.files.tables import Contents, any_rows
from retrieval.readers.threads.foreign_formats import FOREIGN_SUFFIXES, refusal
from retrieval.readers.threads.message_tree import blocks
from retrieval.readers.threads.thread_reader import CHAT_BLOCK, ReaderOptions, ThreadReader
from retrieval.settings.tasks import ThreadsTask
from retrieval.settings.thread_formats import CONTAINERS, FALLBACK_FORMAT, THREAD_FORMATS, ThreadFormat

#: Files of a source that are looked at for its format.
_TRIED = 8


def read_threads(task: ThreadsTask, tally: Tally) -> Iterator[Thread]:
    """Read the threads of a task's files, in file order.

    Raises:
        InputError: a source is missing or broken, or its format cannot be detected.
    """
    format = THREAD_FORMATS[thread_format(task)]
    # Imported by name, because each reader brings its own parser.
    reader: ThreadReader = import_module(format.module).read_threads
    files = []
    for split, survey in _surveys(task, format):
        files += [(split, file) for file in survey.files]
        tally.dropped.update(survey.left_out)
    missing = ("drop" if format.chat else "error") if task.missing_parents == "auto" else task.missing_parents
    found = reader(files, ReaderOptions(missing, task.columns), tally)
    block = task.block or (CHAT_BLOCK if format.chat else None)
    yield from found if block is None else blocks(found, block, tally)


def thread_format(task: ThreadsTask) -> str:
    """Return the format of a task's files.

    The format is configured, or detected from the file names or the fields of the first file.

    Raises:
        InputError: a source is missing, or the format cannot be detected.
    """
    if task.columns is not None:
        return "columns"
    if task.format != "auto":
        return task.format
    formats = {name: format for name, format in THREAD_FORMATS.items() if name != "columns"}
    # A dict instead of a set: its order does not change from run to run.
    suffixes = dict.fromkeys(suffix for format in formats.values() for suffix in format.suffixes)
    companions = [format.companion for format in formats.values() if format.companion]
    try:
        files = survey_files(task.source, tuple(suffixes), "threads.source", companions).files
    except InputError as error:
        raise _nearest(task.source) or error from None
    for name, format in formats.items():
        if format.told_by_name and any(file.name.lower().endswith(format.suffixes) for file in files):
            return name
    first = next((file for file in files if not _accompanies(file, formats.values())), files[0])
    by_suffix = [name for name, format in formats.items() if first.name.lower().endswith(format.suffixes)]
    if len(by_suffix) == 1:  # such as an archive, which only one format has
        return by_suffix[0]
    # An export may begin with a file that tells nothing, such as an empty one.
    for file in files[:_TRIED]:
        found = _told_by_fields(file)
        if found:
            return found
    return _format_by_fields(first)


def _accompanies(file: SourceFile, formats: Iterable[ThreadFormat]) -> bool:
    name = file.path.name.lower()
    # `users.json` of Slack is read by its reader, and may be the only file that tells the format.
    return any(name in format.accompanying for format in formats) and name != "users.json"


def _nearest(source: str) -> InputError | None:
    """Return the error for a source that has files of formats without a reader only, if it has some."""
    try:
        files = survey_files(source, FOREIGN_SUFFIXES, "threads.source").files
    except InputError:
        return None
    return refusal(files[0])


def _format_by_fields(file: SourceFile) -> str:
    refused = refusal(file)
    if refused is not None:
        raise refused
    try:
        fields = field_names(file, CONTAINERS)
    except InputError:
        return FALLBACK_FORMAT  # its reader raises an error that describes the fault
    if fields and not (found := _told_by(fields) or _told_by(_inner_fields(file, fields))):
        raise InputError(
            f"{file.path}: the format cannot be told from the fields {', '.join(fields)[:80]}; set "
            f"threads.format to one of {', '.join(THREAD_FORMATS)}, or name the fields by threads.columns "
            f"(`jora context --preview {file.path}` proposes them)"
        )
    return found if fields else FALLBACK_FORMAT


def _told_by_fields(file: SourceFile) -> str:
    """Return the format of a file, or "" if the file does not tell it."""
    try:
        if refusal(file):
            return ""
        fields = field_names(file, CONTAINERS)
        return _told_by(fields) or _told_by(_inner_fields(file, fields))
    except InputError:
        return ""


def _inner_fields(file: SourceFile, fields: Sequence[str]) -> list[str]:
    """Return the fields of the first item of a list `data`, which many services put around their rows."""
    if fields[-1:] != ["data"]:
        return []
    items = any_rows(file.path, Contents("an object with the list data", ("data", "")))
    _, _, first = next(items, ("", 0, None))
    # Without such a list, the item is the object itself.
    return list(first) if isinstance(first, dict) and "data" not in first else []


def _told_by(fields: Sequence[str]) -> str:
    """Return the format that the fields of a first object belong to, or ""."""
    if fields and all(field.isdecimal() for field in fields):
        return next(name for name, format in THREAD_FORMATS.items() if format.told_by_numbers)
    matches = [
        (len(one), -min(fields.index(field) for field in one), name)
        for name, format in THREAD_FORMATS.items()
        for one in format.told_by
        if one <= set(fields)
    ]
    # The largest set decides; of equal ones, that which begins first in the file.
    return max(matches)[2] if matches else ""


def thread_files(task: ThreadsTask) -> list[tuple[str, SourceFile]]:
    """Return (split, file) of each of a task's files.

    The split is "" if folder names or the seed decide it.

    Raises:
        InputError: a source is missing, or its format cannot be detected.
    """
    surveys = _surveys(task, THREAD_FORMATS[thread_format(task)])
    return [(split, file) for split, survey in surveys for file in survey.files]


def _surveys(task: ThreadsTask, format: ThreadFormat) -> list[tuple[str, Survey]]:
    # A remote folder is copied by these endings; companions must come along with their files.
    beside = (format.companion,) if format.companion else ()
    sources = [("train" if task.test_source else "", task.source, "threads.source")]
    if task.test_source:
        sources.append(("test", task.test_source, "threads.test_source"))
    found = []
    for split, source, field in sources:
        survey = survey_files(source, format.suffixes, field, (*beside, *format.accompanying))
        kept = [file for file in survey.files if file.path.name.lower() not in format.accompanying]
        found.append((split, Survey(kept or survey.files, survey.left_out)))
    return found
