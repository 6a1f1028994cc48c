"""The files that a configuration reads, and their digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jora_core.base.digests import file_digest
from jora_core.base.errors import read_error
from retrieval.corpus.reading_limits import ReadingLimits, limited_to
from retrieval.corpus.tokenizer_folder import tokenizer_folder
from retrieval.search.sentence_models import model_folder, models
from retrieval.settings.context import ContextConfig
from retrieval.tasks.task_protocol import task_input_files
from retrieval.text.token_counter import tokenizer_file


def limits_of(config: ContextConfig) -> ReadingLimits:
    """Return the limits of reading that a configuration sets."""
    return ReadingLimits(**config.limits.model_dump(), allow_links_outside=config.allow_links_outside)


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return every file that a build reads, with a stable label.

    The digests of these files are part of the key of a pipeline stage.

    Raises:
        InputError: a source is missing.
    """
    # As a list: between two items of a generator, the limits would hold for the caller too.
    with limited_to(limits_of(config)):
        files = [found for task in config.tasks for found in task_input_files(task, config)]
    yield from files
    if config.counts_tokens:
        file = tokenizer_file(tokenizer_folder(config))
        yield f"tokenizer/{file.name}", file
    for field, model in models(config).items():
        folder = model_folder(model, field)
        # A model by public name has no local files before it is loaded. `input_digests` uses its
        # name instead.
        if folder is not None:
            # All files: a pooling or normalising module of a sentence-transformers model has its settings in
            # a subfolder.
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                yield f"{field}/{path.relative_to(folder).as_posix()}", path


def input_digests(config: ContextConfig) -> dict[str, str]:
    """Return the SHA-256 of every input file by label.

    A model that is configured by a public name has that name in place of a digest.

    Raises:
        InputError: a source is missing or cannot be read.
    """
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
