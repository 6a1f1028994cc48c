"""Progress of building records on standard error: bars on a terminal, plain lines elsewhere.

Each step of the work has its own: what is done, of how many where that is known, the rate, the time left.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PAUSE_SECONDS = 10.0  # between two plain lines of one step


class Bars:
    """Shows `(step, done, total)`; `total` is 0 where it is not known."""

    def __init__(self, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._pause = pause_seconds
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._rich: Any = None
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        if sys.stderr.isatty():
            self._rich = _rich_bars()
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def show(self, step: str, done: int, total: int) -> None:
        """Say how far a step is; drawing is throttled, its beginning and its end are always shown."""
        now = time.monotonic()
        begun = self._begun.setdefault(step, now)
        if self._rich is not None:
            if step not in self._bars:
                self._bars[step] = self._rich.add_task(step, total=total or None)
            self._rich.update(self._bars[step], completed=done, total=total or None)
            return
        first = step not in self._said
        finished = total > 0 and done >= total
        if first or finished or now - self._said[step] >= self._pause:
            self._said[step] = now
            print(_line(step, done, total, now - begun), file=sys.stderr, flush=True)


def _line(step: str, done: int, total: int, seconds: float) -> str:
    """`qa: records: 4000 of 10000 (812/s, 7 s left)`."""
    if not done:
        return f"{step}: {f'{total} to do' if total else 'begins'}"
    text = f"{step}: {done}{f' of {total}' if total else ''}"
    if seconds <= 0:
        return text
    rate = done / seconds
    left = f", {(total - done) / rate:.0f} s left" if done < total else f", {seconds:.1f} s"
    return f"{text} ({rate:.0f}/s{left})"


def _rich_bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Bar) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{rate:.0f}/s" if rate else "")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
