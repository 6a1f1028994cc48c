"""The `qa` task: questions over documents, or instructions with answers if the source holds these.

Two modules (`questions`, `instructions`) build the two kinds of records, which belong to one task.
"""

from __future__ import annotations

from pathlib import Path

from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.readers.documents.documents import tells_instructions
from retrieval.search.dense.embedder import Embedder
from retrieval.settings.context import ContextConfig
from retrieval.settings.document_layouts import DOCUMENT_LAYOUTS
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa import instructions, questions
from retrieval.tasks.qa.inputs import document_files
from retrieval.tasks.task_protocol import Task, TaskWork


def prepare(
    config: ContextConfig, embedder: Embedder | None, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Read, split, limit and index the corpus in `folder`. Return the number of records to build.

    Args:
        config: the configuration, with a `qa` section.
        embedder: model of the dense leg; None if no task uses the leg.
        folder: folder of the prepared files.
        report: counts what was read and dropped.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    assert config.qa is not None
    if holds_instructions(config.qa):
        return instructions.prepare(config, folder, report, progress)
    return questions.prepare(config, embedder, folder, report, progress)


def open_work(config: ContextConfig, folder: Path) -> TaskWork:
    """Open the files that `prepare` wrote."""
    # The folder shows which kind was prepared, so a process that builds a part need not read the source
    # again.
    if instructions.is_prepared(folder):
        return instructions.open_work(folder)
    return questions.open_work(config, folder)


def holds_instructions(task: QaTask) -> bool:
    """Return whether the source of a question task holds instructions with answers instead of documents.

    If the configuration does not name the layout, the fields of the first row identify it.

    Raises:
        InputError: the source has no files.
    """
    if task.format != "auto":
        return DOCUMENT_LAYOUTS[task.format].instructions
    if task.questions is not None or task.has_made_questions:  # then the source holds their documents
        return False
    return tells_instructions(document_files(task)[0])


def _needs_embedder(config: ContextConfig) -> bool:
    assert config.qa is not None
    return "dense" in config.qa.legs and not holds_instructions(config.qa)


TASK = Task(prepare, open_work, _needs_embedder)
