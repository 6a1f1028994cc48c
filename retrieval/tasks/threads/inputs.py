"""Find the input files of the task of reply links in threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retrieval.readers.threads.registry import thread_files, thread_format
from retrieval.settings.context import ContextConfig
from retrieval.settings.thread_formats import THREAD_FORMATS


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return the threads' files, and the companion of each file if the format has companions, with stable
    labels.

    Raises:
        InputError: a source is missing, or its format cannot be detected.
    """
    assert config.threads is not None
    format = THREAD_FORMATS[thread_format(config.threads)]
    for split, file in thread_files(config.threads):
        role = f"threads{'.' + split if split else ''}"
        yield f"{role}/{file.name}", file.path
        # The label is the name below the source, which stays the same when the corpus moves.
        companion, label = format.companion_of(file.path), format.companion_of(Path(file.name))
        if companion is not None and label is not None and companion.is_file():
            yield f"{role}/{label.as_posix()}", companion
