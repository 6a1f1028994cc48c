"""The files of table questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retrieval.corpus.source_files import table_files
from retrieval.settings.context import ContextConfig


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return the questions' files and all tables beside them, with stable labels.

    Raises:
        InputError: a source is missing.
    """
    assert config.tables is not None
    for split, root, tsv in table_files(config.tables):
        role = f"tables{'.' + split if split else ''}"
        yield f"{role}/{tsv.name}", tsv
        for path in sorted((root / "csv").rglob("*.csv")):
            yield f"{role}/{path.relative_to(root).as_posix()}", path
