"""Questions that are asked of a corpus after the training: their types, and the functions of each task.

A question gets the prompt of a held-out record: the texts that the retriever finds with the same index, the
same number of texts and the same budget, and no distractor that was put in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.settings.context import ContextConfig
from retrieval.settings.task_registry import TASKS

if TYPE_CHECKING:
    from retrieval.search.dense.embedder import Embedder


@dataclass(frozen=True)
class Inquiry:
    """One question, or one new post of a thread.

    Attributes:
        id: unique among those that are asked together.
        text: the question, or the text of the post.
        context: id of the thread or table that it is about; "" where the retriever finds it.
        author: who writes the post.
    """

    id: str
    text: str
    context: str = ""
    author: str = "Guest"


@dataclass(frozen=True)
class ShownText:
    """One text of a prompt.

    Attributes:
        id: id of the document, table or post.
        label: how the prompt names it: its number and title, or the label of a post.
        text: the text as the prompt has it, which may be shortened.
        rank: its rank by the retriever, from 1.
    """

    id: str
    label: str
    text: str
    rank: int


@dataclass(frozen=True)
class Asked:
    """The prompt of a question.

    Attributes:
        record: the columns of a record that answering reads: id, instruction, input, split, task, context_id,
            context_ids and choices.
        texts: the texts of the prompt, in its order.
    """

    record: dict[str, Any]
    texts: tuple[ShownText, ...]


Ask = Callable[[ContextConfig, Path, Sequence[Inquiry], "Embedder | None"], list[Asked]]


def load_ask(task: str) -> Ask | None:
    """Return the function of a task that makes the prompts of questions; None for a task without one."""
    # By name, as the other modules of a task: a new task is its own package and one line of the registry.
    name = f"{TASKS[task].package}.ask"
    return import_module(name).ask if find_spec(name) is not None else None


def asked_record(task: str, inquiry: Inquiry, **columns: Any) -> dict[str, Any]:
    """Return the record of a question, in which the columns that a task does not give are empty.

    Args:
        task: name of the task.
        inquiry: the question.
        columns: further columns of the record.
    """
    empty = {"context_id": "", "context_ids": [], "choices": []}
    return {"id": inquiry.id, "task": task, "split": "test", **empty, **columns}


def nearest_ids(given: str, known: Collection[str]) -> str:
    """Return the end of a message that names ids of the corpus near to a given one, or some of them."""
    near = get_close_matches(given, list(known), 3) if given else []
    names = near or list(islice(known, 3))
    return f"; {'the nearest are' if near else 'its ids are such as'} {', '.join(names)}"
