"""Find the input files of the task of questions over tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.remote_sources import is_url
from retrieval.corpus.source_files import expand_path, unpacked_name
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import TablesTask

#: Endings of files whose rows bring their table along.
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".parquet")


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return the files of the questions and of all tables in the same folders, with stable labels.

    Raises:
        InputError: a source is missing.
    """
    assert config.tables is not None
    for split, root, tsv in table_files(config.tables):
        role = f"tables{'.' + split if split else ''}"
        yield f"{role}/{tsv.name}", tsv
        if table_format(config.tables, tsv) != "wikitables":
            # WikiSQL's tables lie beside its questions.
            for path in sorted(tsv.parent.glob("*.tables.*")):
                yield f"{role}/{path.name}", path
            continue
        # All tables beside the questions, also unused ones: which are used is known only after the questions
        # are read.
        for path in sorted((root / "csv").rglob("*.csv")):
            yield f"{role}/{path.relative_to(root).as_posix()}", path


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
                ".tsv, or questions with their tables as .jsonl, .json or .parquet"
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
    kinds = (".csv", ".tsv")
    if not url.endswith(".tsv"):
        return expand_path(url, field, kinds)
    # `…/data/training.tsv`: two levels up is the root that the tables lie below.
    root, folder, name = url.rsplit("/", 2)
    return str(Path(expand_path(root, field, kinds)) / folder / name)
