"""Write the links of held-out threads: as annotated, by rules, and as the learned fusion predicts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jora_core.base.record_columns import arrow_schema
from retrieval.corpus.mapped_items import RowSink
from retrieval.corpus.types import Post, Thread
from retrieval.evaluation.threads.link_rows import LEARNED, LINK_COLUMNS
from retrieval.tasks.task_protocol import LINKS
from retrieval.tasks.threads.link_rules import RULES
from retrieval.tasks.threads.store import Reply, ReplyRow, ThreadStore
from retrieval.text.normalize import seeded_hash

#: Messages of the test split whose links are predicted at most; whole threads by seed.
MOST_MESSAGES = 5_000

#: (thread, place) of a message → places of the posts that it answers, its own if it starts a conversation.
Predicted = Mapping[tuple[int, int], Sequence[int]]


def linked_threads(threads: ThreadStore, window: int, seed: int) -> list[int]:
    """Return the numbers of the held-out threads whose links are written, in an order by seed.

    Args:
        threads: the corpus.
        window: how many posts before a message are candidates.
        seed: decides the order.
    """
    ids, splits = list(threads.rows.column("id")), list(threads.rows.column("split"))
    held_out = [number for number, split in enumerate(splits) if split == "test"]
    found, messages = [], 0
    for number in sorted(held_out, key=lambda number: (seeded_hash(seed, "fitted", ids[number]), number)):
        if messages >= MOST_MESSAGES:
            break
        found.append(number)
        messages += len(asked_messages(threads, number, window))
    return found


def asked_messages(threads: ThreadStore, number: int, window: int) -> list[ReplyRow]:
    """Return the messages of a thread that can be asked: annotated, with a text and with earlier posts.

    Args:
        threads: the corpus.
        number: the thread.
        window: how many posts before a message are candidates; parents before them stay in the row.
    """
    posts = threads.thread(number).posts
    places = {post.id: place for place, post in enumerate(posts)}
    return [
        ReplyRow(number, place, _earlier(post, place, places), max(0, place - window))
        for place, post in enumerate(posts)
        if place and post.has_known_parents and post.text
    ]


def write_links(
    threads: ThreadStore, numbers: Sequence[int], learned: Predicted | None, folder: Path
) -> None:
    """Write the links of held-out threads, in the order of the corpus.

    Args:
        threads: the corpus.
        numbers: the threads.
        learned: links that the learned fusion predicts; None without it.
        folder: the task's folder.
    """
    by_thread: dict[int, dict[int, Sequence[int]]] = {}
    for (number, place), places in (learned or {}).items():
        by_thread.setdefault(number, {})[place] = places
    with RowSink(folder / LINKS, arrow_schema(LINK_COLUMNS)) as sink:
        for number in sorted(numbers):
            of_thread = None if learned is None else by_thread.get(number, {})
            for row in _rows(threads.thread(number), of_thread):
                sink.append(tuple(row[name] for name in LINK_COLUMNS))


def _rows(thread: Thread, learned: Mapping[int, Sequence[int]] | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a thread, in the order of their numbers."""
    posts = thread.posts
    places = {post.id: place for place, post in enumerate(posts)}
    # Numbers of an annotation are names of its lines, which are the ids of the posts.
    numbers = [int(post.id) for post in posts] if thread.links else list(range(len(posts)))
    annotated: dict[int, list[int]] = {}
    for message, parent in thread.links:
        annotated.setdefault(message, []).append(parent)
    by_rule = {name: rule(posts) for name, rule in RULES.items()}
    rows = []
    for place, post in enumerate(posts):
        if thread.links:
            parents = annotated.pop(numbers[place], [])
        elif post.has_known_parents:
            # A link to a later post is an error of the source: the post counts as a start.
            parents = [numbers[p] for p in _earlier(post, place, places)] or [numbers[place]]
        else:
            parents = []
        said = {name: [numbers[found[place]]] if parents else [] for name, found in by_rule.items()}
        said[LEARNED] = []
        if parents and learned is not None:
            said[LEARNED] = [numbers[p] for p in learned.get(place, (place,))]
        asked = bool(place and parents and post.text)
        row = {"id": Reply.record_id(thread, post), "post_id": post.id, "number": numbers[place]}
        rows.append(row | {"parents": parents, "asked": asked} | said)
    # What is left are lines of the system. They are no candidates, so nobody predicts more than a start.
    for number, parents in annotated.items():
        said = {name: [number] for name in RULES} | {LEARNED: [] if learned is None else [number]}
        rows.append({"id": "", "post_id": "", "number": number, "parents": parents, "asked": False} | said)
    shared = {"task": "threads", "split": "test", "context_id": thread.id}
    yield from (shared | row for row in sorted(rows, key=lambda row: row["number"]))


def _earlier(post: Post, place: int, places: Mapping[str, int]) -> tuple[int, ...]:
    """Return the places of the posts that a post answers, without the post itself and later ones."""
    return tuple(p for p in (places[parent] for parent in post.parents) if p < place)
