"""Make the prompts of questions from a configuration's corpus, which is prepared once and then kept.

The first question prepares the corpus, as a build does. Later ones map the prepared files into memory, as
long as settings, sources and code are the same.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jora_core.base.errors import InputError, write_error
from retrieval.build.shards import prepare
from retrieval.corpus.source_files import expand_path
from retrieval.evaluation.task_report import Progress
from retrieval.search.dense.embedder import load_embedder
from retrieval.settings.context import ContextConfig
from retrieval.tasks.asking import Asked, Inquiry, load_ask
from retrieval.tasks.task_protocol import load_task


def ask_corpus(
    config: ContextConfig,
    task: str,
    inquiries: Sequence[Inquiry],
    work: Path,
    top: int | None,
    progress: Progress,
) -> list[Asked]:
    """Return the prompts of questions.

    Args:
        config: the configuration of the records.
        task: the task that is asked.
        inquiries: the questions.
        work: folder of the prepared corpora, which is kept.
        top: number of texts in a prompt; None takes that of the configuration.
        progress: receives (step, done, total) while the corpus is prepared.

    Raises:
        InputError: a source cannot be read, the folder cannot be written, or a question cannot be asked.
    """
    ask = load_ask(task)
    if ask is None:
        raise InputError(f"task {task} takes no new questions")
    config = config.of_task(task)
    with _alone(work):
        prepare(config, work, progress)
        shown = config
        if top is not None:
            # After the preparation, which is the same for any number.
            section = config.tasks[task].model_copy(update={"n_contexts": top})
            shown = config.model_copy(update={task: section})
        embedder = None
        if load_task(task).needs_embedder(config):
            cache = config.embedding_cache
            folder = Path(expand_path(cache, "embedding_cache")) if cache else None
            embedder = load_embedder(config.embedder, f"{task}.legs", folder)
        return ask(shown, work / task, inquiries, embedder)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Wait until no other process uses the folder; the operating system frees the lock of a dead one."""
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        # Of a file beside the folder, because the folder itself is deleted and made anew.
        handle = os.open(work.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_error(work, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
