"""The registry of tasks, one row for each: its package, and the class of its section in the configuration.

To add a task, write a package `retrieval/tasks/<name>/` and add its row to `TASKS`. The package holds
(:mod:`retrieval.tasks.task_protocol` has the types):

    task.py     `TASK`, a :class:`retrieval.tasks.task_protocol.Task`: prepares the corpus, builds records
    inputs.py   `input_files(config)`: the files that the task reads; loaded by `jora plan`, so without numpy
    scoring.py  `score(answers)`: the scores of :class:`retrieval.tasks.answers.Answers` to the task's records

and the settings class, a :class:`retrieval.settings.tasks.TaskSettings` with `facts`. The class may also be
in `settings.py` of the package, which may import the standard library and Pydantic only.

Nothing here imports a task. Modules are named as text, and imported by the code that needs one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Annotated

from retrieval.settings.choices import OneOf
from retrieval.settings.document_layouts import DOCUMENT_LAYOUTS, TABLE_FORMATS, TEXT_FILES, TEXT_KINDS
from retrieval.settings.legs import leg_modules
from retrieval.settings.tasks import TaskFacts, TaskSettings
from retrieval.settings.thread_formats import THREAD_FORMATS


@dataclass(frozen=True)
class TaskEntry:
    """A registered task: the dotted name of its package, and its settings class as `module:Class`."""

    package: str
    settings_name: str

    @cached_property
    def settings(self) -> type[TaskSettings]:
        """The class of the task's section in the configuration."""
        # Imported at the first use, so that a task's own settings module may import this package.
        module, _, name = self.settings_name.partition(":")
        return getattr(import_module(module), name)

    @property
    def facts(self) -> TaskFacts:
        """Title, description and properties of the task, for the form, the evaluation and the report."""
        return self.settings.facts


#: In the order of the records.
TASKS: dict[str, TaskEntry] = {
    "tables": TaskEntry("retrieval.tasks.tables", "retrieval.settings.tasks:TablesTask"),
    "threads": TaskEntry("retrieval.tasks.threads", "retrieval.settings.tasks:ThreadsTask"),
    "qa": TaskEntry("retrieval.tasks.qa", "retrieval.settings.tasks:QaTask"),
}

TaskName = Annotated[str, OneOf(tuple(TASKS))]


def task_modules(task: str) -> list[str]:
    """Return the modules that a build of one task imports by name, without readers and legs."""
    return [f"{TASKS[task].package}.{part}" for part in ("task", "inputs")]


#: Modules that import others by name, and what they import.
LOADERS: dict[str, tuple[str, ...]] = {
    "retrieval.search.legs.rank_legs": leg_modules(),
    "retrieval.readers.threads.registry": tuple(format.module for format in THREAD_FORMATS.values()),
    "retrieval.readers.documents.documents": tuple(
        layout.module for layout in (*DOCUMENT_LAYOUTS.values(), TEXT_FILES)
    ),
    "retrieval.tasks.tables.task": tuple(TABLE_FORMATS.values()),
    "retrieval.readers.documents.text_files": tuple(dict.fromkeys(TEXT_KINDS.values())),
}


def build_modules() -> list[str]:
    """Return the modules that a build imports by name: tasks, legs and readers.

    A search along imports for the code of a build must also start from these modules.
    """
    tasks = [module for name in TASKS for module in task_modules(name)]
    return [*tasks, *(module for modules in LOADERS.values() for module in modules)]


def scoring_modules() -> list[str]:
    """Return the modules that an evaluation imports by name."""
    return [f"{entry.package}.scoring" for entry in TASKS.values()]
