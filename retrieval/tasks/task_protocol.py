"""The interface of a task, and the functions that load its modules.

A task is three modules of one package, because three processes need different parts of it: planning needs
the files that it reads, building needs all of it, and the evaluation needs only its scores
(:mod:`retrieval.tasks.answers`). :mod:`retrieval.settings.task_registry` lists the packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from retrieval.settings.context import ContextConfig
from retrieval.settings.task_registry import TASKS

if TYPE_CHECKING:
    # Planning imports this module, and these need numpy.
    from retrieval.evaluation.task_report import Progress, TaskReport
    from retrieval.search.dense.embedder import Embedder

#: File that a task may write into its prepared folder: rows of `links.parquet`.
LINKS = "links.arrow"

#: A record and its ranking; None where the task has no rankings.
Example = tuple[dict[str, Any], dict[str, Any] | None]


class TaskWork(Protocol):
    """The prepared files of a task, opened to build records."""

    def build(self, low: int, high: int, report: TaskReport) -> Iterator[Example]:
        """Build the records of the prepared examples `low` to `high - 1`, in order.

        A record depends on its example alone and not on `low` and `high`, so the work may be cut anywhere.

        Args:
            low: number of the first example.
            high: number after the last example.
            report: counts records, ranks, and examples that are dropped.
        """
        ...


class Prepare(Protocol):
    """The type of the first step of a task, which runs once for each build."""

    def __call__(
        self,
        config: ContextConfig,
        embedder: Embedder | None,
        folder: Path,
        report: TaskReport,
        progress: Progress,
    ) -> int:
        """Read, split, limit and index the corpus. Return the number of examples to build.

        Args:
            config: the configuration, which has a section for this task.
            embedder: model of the dense leg; None if no task uses the leg.
            folder: folder of the prepared files.
            report: counts what was read and dropped.
            progress: receives (step, done, total) while the work advances.

        Raises:
            InputError: a source is missing, broken or empty.
        """
        ...


@dataclass(frozen=True)
class Task:
    """The functions that build the records of a task.

    Attributes:
        prepare: reads the corpus into a folder.
        open_work: opens a prepared folder, in any process that builds a part of the records.
        needs_embedder: returns whether a configuration of the task uses the dense leg.
    """

    prepare: Prepare
    open_work: Callable[[ContextConfig, Path], TaskWork]
    # Answered before anything is read, so that a missing model is refused at once.
    needs_embedder: Callable[[ContextConfig], bool] = field(default=lambda config: False)


def load_task(name: str) -> Task:
    """Import the modules of a task and return the functions that build its records."""
    # By name: a build loads only the tasks that it is configured for, with their libraries.
    return import_module(f"{TASKS[name].package}.task").TASK


def task_input_files(name: str, config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return (stable label, path) of every file that a configured task reads.

    Raises:
        InputError: a source is missing.
    """
    # A module of its own, because planning calls this and must not load numpy.
    return import_module(f"{TASKS[name].package}.inputs").input_files(config)
