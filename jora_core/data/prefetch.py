"""Prefetching: a thread makes the next items of an iterator while the caller uses the current one.

Items keep the order of the iterator. So a resumed run gets the same items as without the thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

# One finished item and one in progress hide the time of making items; more would only take memory.
DEPTH = 2
_POLL_SECONDS = 0.1


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """Marker in the queue: the iterator has no more items."""


@contextmanager
def prefetched(items: Iterator[Item], depth: int = DEPTH) -> Iterator[Iterator[Item]]:
    """Iterate over `items` in a thread that runs up to `depth` items ahead of the caller.

    This is a context manager; the thread ends when its block ends.

    Args:
        items: the iterator that the thread runs.
        depth: limit of finished items that wait, at least 1. The thread may be making one more item.

    Raises:
        Exception: any error of `items`, at the place of the failed item.
    """
    waiting: queue.Queue[Item | _Failed | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Item | _Failed | _End) -> None:
        # With a timeout: when the reader has left, no place becomes free, and the thread must still end.
        while not stop.is_set():
            try:
                return waiting.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
        # Also what is no `Exception`: if the thread ended silently, the reader would wait without end.
        except BaseException as err:
            return put(_Failed(err))
        put(_End())

    def read() -> Iterator[Item]:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        # Wait for the last item: a daemon thread that is inside JAX's runtime while the interpreter ends can
        # crash the process.
        thread.join()
