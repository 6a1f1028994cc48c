"""The files of questions over documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retrieval.corpus.source_files import document_files, question_files
from retrieval.settings.context import ContextConfig


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return the documents' files, and the questions' files where they are others, with stable labels.

    Raises:
        InputError: a source is missing.
    """
    assert config.qa is not None
    for file in document_files(config.qa):
        yield f"qa.documents/{file.name}", file.path
    for file in question_files(config.qa) if config.qa.questions is not None else []:
        yield f"qa.questions/{file.name}", file.path
