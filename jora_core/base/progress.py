"""Progress of long work on standard error: rich bars on a terminal, plain lines elsewhere.

This is the project's only progress display. Work of one step uses `progress`:

    with progress("load tensors", total=300) as bar:
        bar.advance()                     # one more is done
        bar.update(120, note="shard 2")   # 120 are done

Work of several steps uses `ProgressBars`, whose steps need not be known in advance:

    with ProgressBars() as bars:
        bars.show("qa: records", done=4000, total=10_000)
        bars.say("a line of its own, above the bars")

A plain line is `qa: records: 4000 of 10000 (812/s, 7 s left)`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 10.0  # between two plain lines of one step


class ProgressBars:
    """One bar, or one plain line from time to time, for each step of some work."""

    def __init__(self, seconds_between_lines: float = SECONDS_BETWEEN_LINES, shown: bool = True) -> None:
        self._pause = seconds_between_lines
        self._shown = shown
        self._started: dict[str, float] = {}
        self._last_line: dict[str, float] = {}
        self._display: Any = None
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> ProgressBars:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Begin to draw, where there is a terminal."""
        if self._shown and self.on_terminal:
            self._display = _rich_display()
            self._display.start()

    def close(self) -> None:
        """End drawing. Needed after errors too: rich hides the terminal's cursor until its display stops."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    @property
    def on_terminal(self) -> bool:
        """Whether bars are drawn; elsewhere lines are printed."""
        return sys.stderr.isatty()

    def show(self, step: str, done: int, total: int, note: str = "") -> None:
        """Show how far a step is; a plain line is printed at its begin, at its end, and now and then between.

        Args:
            step: title of the step; each title has its own bar.
            done: items that are done.
            total: items in all, 0 where that is not known.
            note: short text behind the numbers.
        """
        if not self._shown:
            return
        # Not the wall clock, which may be set back while the work runs.
        now = time.monotonic()
        started = self._started.setdefault(step, now)
        if self._display is not None:
            self._draw(step, done, total, note)
            return
        # `start` and `show` both set the time of the last line. So work that began with `start` and is short
        # prints one line, at its end.
        first = step not in self._last_line
        finished = total > 0 and done >= total
        if first or finished or now - self._last_line[step] >= self._pause:
            self._last_line[step] = now
            self.say(_line(step, done, total, now - started) + (f" {note}" if note else ""))

    def start(self, step: str, total: int, done: int = 0) -> None:
        """Draw an empty bar; without a terminal, print no line before some time has passed.

        Args:
            step: title of the step.
            total: items in all, 0 where that is not known.
            done: items that were done before, by an earlier process.
        """
        self._started[step] = self._last_line[step] = time.monotonic()
        if self._display is not None:
            self._draw(step, done, total, "")

    def say(self, line: str) -> None:
        """Print a line of its own, above the bars."""
        if not self._shown:
            return
        if self._display is not None:
            # rich would take square brackets in a path or message as markup, and colour the numbers.
            self._display.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw(self, step: str, done: int, total: int, note: str) -> None:
        if step not in self._bars:
            # None draws a moving bar without an end. rich takes a total of 0 as finished.
            self._bars[step] = self._display.add_task(step, total=total or None, note="")
        self._display.update(self._bars[step], completed=done, total=total or None, note=note)


class Progress:
    """The progress of one step; see `progress`."""

    def __init__(self, bars: ProgressBars, title: str, total: int) -> None:
        self._bars, self._title, self._total = bars, title, total
        self._done = 0

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` items are done."""
        self._done = done
        self._bars.show(self._title, done, self._total, note)

    def advance(self, count: int = 1) -> None:
        """Show that `count` more items are done."""
        self.update(self._done + count)


@contextmanager
def progress(title: str, total: int, shown: bool = True) -> Iterator[Progress]:
    """Show the progress of one step while the context lasts.

    Args:
        title: what is being done, such as "load tensors".
        total: items in all.
        shown: False shows nothing, for work that is too short or is reported by another process.
    """
    with ProgressBars(shown=shown) as bars:
        bars.start(title, total)
        yield Progress(bars, title, total)


def _line(step: str, done: int, total: int, seconds: float) -> str:
    """Return `qa: records: 4000 of 10000 (812/s, 7 s left)`."""
    if not done:
        return f"{step}: {f'{total} to do' if total else 'begins'}"
    text = f"{step}: {done}{f' of {total}' if total else ''}"
    # The first call comes at the time that counts as the begin: there is no rate yet.
    if seconds <= 0:
        return text
    rate = done / seconds
    left = f", {(total - done) / rate:.0f} s left" if done < total else f", {seconds:.1f} s"
    # Slow work, such as long answers on a CPU, does less than ten items a second.
    return f"{text} ({rate:.{0 if rate >= 10 else 1}f}/s{left})"


def _rich_display() -> Any:
    # rich is loaded only where bars are drawn. Child processes and log files do without it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Display
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{rate:.{0 if rate >= 10 else 1}f}/s" if rate else "")

    return Display(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        # rich would print what a command writes to standard output on standard error.
        redirect_stdout=False,
    )
