"""The records that `raft_epoch` trains on: questions over tables, and replies over windows of a chat.

Made by the pipeline's own readers and prompts, so they are what `build-context` would write, but for the
thread task's retrieval: here all replies of a window see the whole of it, or all that comes before them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from retrieval.corpus.source_files import find_files
from retrieval.corpus.types import Post, Tally, Thread
from retrieval.prompts import templates
from retrieval.readers.tables.wikitables import read_tables
from retrieval.readers.threads.irc import read_threads
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.settings.thread_formats import THREAD_FORMATS

WINDOW = 100  # messages of a chat in a window
REPLIES = 20  # questions over one window

Row = dict[str, Any]
Context = list[Row]  # the records of one context


def table_contexts(shared: Path, seed: int) -> Iterator[Context]:
    """WikiTableQuestions' training questions, a table at a time, tables in an order drawn by seed."""
    root = shared / "data" / "wikitables"
    tables, questions = read_tables(root, root / "data" / "training.tsv", Tally(), "training.tsv")
    by_table: dict[str, Context] = {}
    for question in questions:
        table = tables[question.context_id]
        block = templates.table_block(table.header, table.rows, table.title)
        body = templates.tables_input([block], question.text)
        answer = templates.ANSWER_SEPARATOR.join(question.answers)
        row = _row(question.id, table.id, templates.TABLES_INSTRUCTION, body, answer, "tables")
        by_table.setdefault(table.id, []).append(row)
    yield from _shuffled(by_table.values(), seed)


def chat_contexts(shared: Path, seed: int, growing: bool = False) -> Iterator[Context]:
    """A window of 100 messages of each Ubuntu IRC log; of each of its last 20 replies: to what?

    Args:
        growing: a reply sees what comes before it, as `contexts: window` has it, not the whole window.
    """
    files = find_files(str(shared / "data" / "irc" / "train"), THREAD_FORMATS["irc"].suffixes, "irc")
    windows = []
    for thread in read_threads([("train", file) for file in files], ReaderOptions("drop"), Tally()):
        window = _window(thread, growing)
        if len(window) == REPLIES:
            windows.append(window)
    yield from _shuffled(windows, seed)


growing_contexts = partial(chat_contexts, growing=True)


def _window(thread: Thread, growing: bool) -> Context:
    """The last replies of the first 100 annotated messages, each with its parent among them."""
    start = next((i for i, post in enumerate(thread.posts) if post.has_known_parents), 0)
    window = thread.posts[start : start + WINDOW]
    labels = {post.id: templates.post_label(post.author, n) for n, post in enumerate(window, 1)}
    posts = [(labels[post.id], post.text) for post in window]

    def record(place: int, post: Post) -> Row:
        body = templates.threads_input(posts[:place] if growing else posts, post.author, post.text)
        answer = next(labels[parent] for parent in post.parents if places.get(parent, place) < place)
        name = f"{thread.id}:{post.id}"
        return _row(name, thread.id, templates.THREADS_INSTRUCTION, body, answer, "threads")

    places = {post.id: place for place, post in enumerate(window)}
    replies = [
        (place, post)
        for place, post in enumerate(window)
        if any(places.get(parent, place) < place for parent in post.parents)
    ]
    return [record(place, post) for place, post in replies[-REPLIES:]]


def _row(name: str, context: str, instruction: str, body: str, answer: str, task: str) -> Row:
    return {
        "id": name,
        "instruction": instruction,
        "input": body,
        "output": answer,
        "task": task,
        "split": "train",
        "context_id": context,
    }


def _shuffled(contexts: Iterable[Context], seed: int) -> list[Context]:
    order = list(contexts)
    random.Random(seed).shuffle(order)
    return order


def take(contexts: Iterable[Context], records: int, fits: Callable[[Context], bool]) -> list[Context]:
    """The first contexts that fit and together have at least so many records."""
    taken: list[Context] = []
    for context in contexts:
        if sum(map(len, taken)) >= records:
            break
        if fits(context):
            taken.append(context)
    return taken
