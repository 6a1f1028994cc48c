"""What a run does while its Prefect server does not answer: it goes on, says so, and reports later.

Training and other work run in child processes, which need no server. Prefect's client waits for a server that
does not answer (`PATIENCE` in :mod:`flows.orchestration.prefect_server`). So a run and its worker outlive a
restart of the server, or of its machine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flows.orchestration.prefect_server import answers

POLL_SECONDS = 10.0
# A server of a machine that is busy training may miss one look.
MISSES = 2


@contextmanager
def outages_told(
    api_url: str | None, logger: logging.Logger | logging.LoggerAdapter[logging.Logger]
) -> Iterator[None]:
    """Log during the block when the server stops to answer, and when it answers again.

    Args:
        api_url: address of the server; None if there is none to look at.
        logger: logger of the run, which also prints where the run was started.
    """
    ended = threading.Event()

    def watch(url: str) -> None:
        misses, since = 0, 0.0
        while not ended.wait(POLL_SECONDS):
            if answers(url, seconds=POLL_SECONDS):
                if misses >= MISSES:
                    logger.info("the Prefect server answers again after %.0f s", time.monotonic() - since)
                misses = 0
                continue
            misses += 1
            since = time.monotonic() if misses == 1 else since
            if misses == MISSES:
                logger.warning(
                    "the Prefect server at %s does not answer; the run goes on, and reports when it answers",
                    url,
                )

    if api_url is None:
        yield
        return
    watcher = threading.Thread(target=watch, args=(api_url,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
