"""The files that a configuration reads, and their digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jora_core.base.digests import file_digest
from jora_core.base.errors import read_error
from retrieval.corpus.source_files import (
    IRC_SUFFIX,
    annotation_path,
    document_files,
    question_files,
    table_files,
    tokenizer_folder,
)
from retrieval.readers.threads.registry import thread_files
from retrieval.search.sentence_models import model_folder, models
from retrieval.settings.context import ContextConfig
from retrieval.text.token_counter import tokenizer_file


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Every file that a build reads, with a stable label; what a stage key should digest.

    Raises:
        InputError: a source is missing.
    """
    if config.tables:
        for split, root, tsv in table_files(config.tables):
            role = f"tables{'.' + split if split else ''}"
            yield f"{role}/{tsv.name}", tsv
            for path in sorted((root / "csv").rglob("*.csv")):
                yield f"{role}/{path.relative_to(root).as_posix()}", path
    if config.threads:
        for split, file in thread_files(config.threads):
            role = f"threads{'.' + split if split else ''}"
            yield f"{role}/{file.name}", file.path
            if file.name.endswith(IRC_SUFFIX):
                note = annotation_path(file.path)
                if note.is_file():
                    yield f"{role}/{annotation_path(Path(file.name)).as_posix()}", note
    if config.qa:
        for file in document_files(config.qa):
            yield f"qa.documents/{file.name}", file.path
        for file in question_files(config.qa) if config.qa.questions is not None else []:
            yield f"qa.questions/{file.name}", file.path
    if config.counts_tokens:
        file = tokenizer_file(tokenizer_folder(config))
        yield f"tokenizer/{file.name}", file
    for field, model in models(config).items():
        folder = model_folder(model, field)
        if folder is not None:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                yield f"{field}/{path.relative_to(folder).as_posix()}", path


def input_digests(config: ContextConfig) -> dict[str, str]:
    """SHA-256 of every input file by label; a model given by public name appears under that name."""
    digests = {}
    for label, path in input_files(config):
        try:
            digests[label] = file_digest(path)
        except OSError as error:
            raise read_error(path, error) from error
    for field, model in models(config).items():
        if model_folder(model, field) is None:
            digests[field] = model
    return digests
