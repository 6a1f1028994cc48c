"""Find the input files of the task of questions over tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import is_url
from retrieval.corpus.source_files import (
    SourceFile,
    expand_path,
    find_files,
    mapped_files,
    survey_files,
    unpacked_name,
)
from retrieval.readers.tables.tagged_values import tagged_file
from retrieval.settings.context import ContextConfig
from retrieval.settings.file_suffixes import DATASET_FILES, TABLE_SUFFIXES
from retrieval.settings.tasks import TablesTask

#: Endings of files whose rows bring their table along.
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".parquet")


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return the files of the questions and of all tables in the same folders, with stable labels.

    Raises:
        InputError: a source is missing.
    """
    assert config.tables is not None
    if config.tables.is_mapped:
        for source in mapped_sources(config.tables):
            role = f"tables{'.' + source.split if source.split else ''}"
            yield from ((f"{role}/{file.name}", file.path) for file in source.files)
            yield from ((f"{role}.questions/{file.name}", file.path) for file in source.questions)
        return
    for split, root, tsv in table_files(config.tables):
        role = f"tables{'.' + split if split else ''}"
        yield f"{role}/{tsv.name}", tsv
        if table_format(config.tables, tsv) != "wikitables":
            # WikiSQL's tables lie beside its questions.
            for path in sorted(tsv.parent.glob("*.tables.*")):
                yield f"{role}/{path.name}", path
            continue
        if (tagged := tagged_file(root, tsv)) is not None:
            yield f"{role}/tagged/{tagged.name}", tagged
        # All tables beside the questions, also unused ones: which are used is known only after the questions
        # are read.
        for path in sorted((root / "csv").rglob("*.csv")):
            yield f"{role}/{path.relative_to(root).as_posix()}", path


@dataclass(frozen=True)
class MappedSource:
    """The files of one split that mappings of columns explain.

    Attributes:
        split: "train" or "test", or "" if the seed decides it.
        files: the tables' files.
        questions: the questions' files; empty if the rows of the tables' files hold the questions too.
        left_out: what was left out of the source, by reason.
    """

    split: str
    files: list[SourceFile]
    questions: list[SourceFile]
    left_out: Counter[str]


def mapped_sources(task: TablesTask) -> list[MappedSource]:
    """Return the files of a task with mappings of columns.

    Raises:
        InputError: a source has no files.
    """
    asked = task.question_columns
    assert asked is not None  # the settings see to it
    questions = []
    if task.questions is not None:
        questions = mapped_files(
            find_files(task.questions, TABLE_SUFFIXES, "tables.questions", DATASET_FILES),
            asked,
            "tables.question_columns",
        )
    names = {file.path.resolve() for file in questions}
    wanted = [("train" if task.test_source else "", task.source, "tables.source")]
    if task.test_source:
        wanted.append(("test", task.test_source, "tables.test_source"))
    found = []
    for split, source, field in wanted:
        survey = survey_files(source, TABLE_SUFFIXES, field, DATASET_FILES)
        files = mapped_files(survey.files, task.columns or asked, field)
        # The questions often lie among their tables.
        files = [file for file in files if file.path.resolve() not in names]
        if not files:
            raise InputError(f"{field}: {source} has no table beside the questions; give the tables' folder")
        found.append(MappedSource(split, files, questions, survey.left_out))
    return found


def table_files(task: TablesTask) -> list[tuple[str, Path, Path]]:
    """Return (split, root, tsv) of each source of a table task.

    The split is "" if the seed decides it.

    Raises:
        InputError: the folder or its .tsv is missing.
    """
    wanted = [("train" if task.test_source else "", task.source, "tables.source")]
    if task.test_source:
        wanted.append(("test", task.test_source, "tables.test_source"))
    out = []
    for split, source, field in wanted:
        path = Path(_tables_copy(source, field) if is_url(source) else expand_path(source, field))
        tsv = path
        if path.is_dir():
            tsv = path / "data" / "training.tsv"
            if not tsv.is_file():
                tsv = _only_file_of_rows(path) or tsv
        if not tsv.is_file():
            raise InputError(
                f"{field}: {tsv} does not exist; expected WikiTableQuestions' layout, its "
                ".tsv, or questions with their tables as .jsonl, .json or .parquet; of any other files name "
                "the columns by tables.columns and tables.question_columns (`jora context --preview FILE` "
                "proposes them)"
            )
        # The `context` column has paths below the root, and the .tsv lies in `data/` of that root.
        out.append((split, tsv.resolve().parent.parent if not path.is_dir() else path, tsv))
    return out


def table_format(task: TablesTask, file: Path) -> str:
    """Return the format of a file of table questions: as configured, or by the ending of its name."""
    if task.format != "auto":
        return task.format
    return "rows" if unpacked_name(file).endswith(ROW_KINDS) else "wikitables"


def _only_file_of_rows(folder: Path) -> Path | None:
    """Return the one file of a folder that may hold questions with their tables; None if it is not clear."""
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and unpacked_name(p).endswith(ROW_KINDS)]
    found = [path for path in found if ".tables." not in path.name]
    return found[0] if len(found) == 1 else None


def _tables_copy(url: str, field: str) -> str:
    """Fetch a tables folder by URL.

    Of a URL of one .tsv file, the folder around the file is fetched, because it holds the tables.
    """
    kinds = (".csv", ".tsv", ".tagged")
    if not url.endswith(".tsv"):
        return expand_path(url, field, kinds)
    # `…/data/training.tsv`: two levels up is the root that the tables lie below.
    root, folder, name = url.rsplit("/", 2)
    return str(Path(expand_path(root, field, kinds)) / folder / name)
