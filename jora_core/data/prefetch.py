"""Work ahead of the loop: a thread makes the next items while the present one is computed with.

The order is that of the iterator, and nothing is made that is not asked for in the end, so that a run that
resumes at a position sees what it would have seen without the thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

DEPTH = 2
_POLL_SECONDS = 0.1


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """The iterator has no more items."""


@contextmanager
def prefetched(items: Iterator[Item], depth: int = DEPTH) -> Iterator[Iterator[Item]]:
    """An iterator over `items` that stay up to `depth` ahead, made by a thread that ends with the block.

    Args:
        depth: items that wait at most, at least 1; one more may be in the making.

    Raises:
        Whatever `items` raises, at the place in the order where it was raised.
    """
    waiting: queue.Queue[Item | _Failed | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Item | _Failed | _End) -> None:
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
        # A daemon thread inside the runtime while the interpreter ends can crash it: wait for the last item.
        thread.join()
