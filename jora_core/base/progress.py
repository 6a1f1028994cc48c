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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 10.0  # between two plain lines of one step


class ProgressBars:
    """Progress display of work in several steps: a bar for each step, or plain lines without a terminal."""

    def __init__(
        self,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
        shown: bool = True,
        write: Callable[[str], None] | None = None,
    ) -> None:
        """Make a display that is not drawn yet.

        Args:
            seconds_between_lines: between two plain lines of one step.
            shown: False shows nothing.
            write: receives each plain line; None prints it on standard error.
        """
        self._pause = seconds_between_lines
        self._write = write
        self._shown = shown
        self._started: dict[str, float] = {}
        self._before: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}
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
        """Start to draw bars if standard error is a terminal."""
        if self._shown and self.on_terminal:
            self._display = _rich_display()
            self._display.start()

    def close(self) -> None:
        """Stop drawing. Call this after errors too, since rich hides the cursor until its display stops."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    @property
    def on_terminal(self) -> bool:
        """Whether bars are drawn. Without a terminal, plain lines are printed."""
        return sys.stderr.isatty()

    def show(self, step: str, done: int, total: int, note: str = "") -> None:
        """Show the progress of a step.

        Without a terminal, a plain line is printed at the start, at the end, and at intervals between.

        Args:
            step: title of the step; each title has its own bar.
            done: number of items that are done.
            total: number of all items, 0 if unknown.
            note: short text after the numbers.
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
        before = self._before.get(step, 0)
        if done > before:
            self._first.setdefault(step, (now, done))
        if first or finished or now - self._last_line[step] >= self._pause:
            self._last_line[step] = now
            # By the time since the first items alone: these take longer, such as a step that is compiled
            # first, and by them hours would be left.
            since, count = self._first.get(step, (now, done))
            left = (now - since) * (total - done) / (done - count) if done > count else None
            line = _line(step, done, total, now - started, done - before, left)
            self.say(line + (f" {note}" if note else ""))

    def start(self, step: str, total: int, done: int = 0) -> None:
        """Start a step: draw its empty bar, or wait for an interval before the first plain line.

        Args:
            step: title of the step.
            total: number of all items, 0 if unknown.
            done: number of items that an earlier process has done; they do not count in the rate.
        """
        self._started[step] = self._last_line[step] = time.monotonic()
        self._before[step] = done
        if self._display is not None:
            self._draw(step, done, total, "")

    def say(self, line: str) -> None:
        """Print a message line above the bars."""
        if not self._shown:
            return
        if self._display is not None:
            # rich would take square brackets in a path or message as markup, and colour the numbers.
            self._display.console.print(line, highlight=False, markup=False)
        elif self._write is not None:
            self._write(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw(self, step: str, done: int, total: int, note: str) -> None:
        if step not in self._bars:
            # None draws a moving bar without an end. rich takes a total of 0 as finished.
            self._bars[step] = self._display.add_task(step, total=total or None, completed=done, note="")
        self._display.update(self._bars[step], completed=done, total=total or None, note=note)


class Progress:
    """Progress display of one step, made by `progress`."""

    def __init__(self, bars: ProgressBars, title: str, total: int, done: int = 0) -> None:
        self._bars, self._title, self._total = bars, title, total
        self._done = done

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` items are done."""
        self._done = done
        self._bars.show(self._title, done, self._total, note)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Show that `count` more items are done, and a short text."""
        self.update(self._done + count, note)


@contextmanager
def progress(
    title: str,
    total: int,
    shown: bool = True,
    done: int = 0,
    write: Callable[[str], None] | None = None,
) -> Iterator[Progress]:
    """Show the progress of one step while the context lasts.

    Args:
        title: title of the step, such as "load tensors".
        total: number of all items.
        shown: False shows nothing, for short work or work that another process reports.
        done: number of items that an earlier process has done.
        write: receives each plain line, such as a logger; None prints it on standard error.
    """
    with ProgressBars(shown=shown, write=write) as bars:
        bars.start(title, total, done)
        yield Progress(bars, title, total, done)


def _line(step: str, done: int, total: int, seconds: float, here: int, left: float | None) -> str:
    """Return `qa: records: 4000 of 10000 (812/s, 7 s left)`. The rate is that of the items done here."""
    if not done:
        return f"{step}: {f'{total} to do' if total else 'begins'}"
    text = f"{step}: {done}{f' of {total}' if total else ''}"
    # The first call comes at the time that counts as the begin: there is no rate yet.
    if seconds <= 0 or here <= 0:
        return text
    rate = here / seconds
    if done >= total:
        return f"{text} ({_rate(rate)}, {seconds:.1f} s)"
    return f"{text} ({_rate(rate)}{'' if left is None else f', {duration(round(left))} left'})"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours, such as `7.5 s`, `3 min 05 s` or `1 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 and seconds != round(seconds) else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _rate(each_second: float) -> str:
    """Return `812/s`, `2.3/s`, or `1.5/min` for slow work, such as long answers on a CPU."""
    if each_second < 0.1:
        return f"{60 * each_second:.1f}/min"
    return f"{each_second:.{0 if each_second >= 10 else 1}f}/s"


def _rich_display() -> Any:
    # rich is loaded only where bars are drawn, and not for child processes and log files.
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
        """Bar column with the rate in items per second."""

        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(_rate(rate) if rate else "")

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
