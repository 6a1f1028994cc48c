"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere, both on stderr."""

    def __init__(self, label: str, total: int, seconds_between_lines: float = 10.0) -> None:
        self._label, self._total, self._pause = label, total, seconds_between_lines
        self._tty = sys.stderr.isatty()
        self._start = time.monotonic()
        self._last = self._start

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total is done; drawing is throttled, the last step is always shown."""
        now = time.monotonic()
        pause = 0.1 if self._tty else self._pause
        if done < self._total and now - self._last < pause:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-9)
        left = f", {(self._total - done) / rate:.0f} s left" if 0 < done < self._total else ""
        text = f"{self._label}: {done}/{self._total} ({rate:.1f}/s{left}){' ' + note if note else ''}"
        if self._tty:
            filled = 24 * done // max(self._total, 1)
            end = "\n" if done >= self._total else ""
            bar = "#" * filled + "." * (24 - filled)
            print(f"\r\x1b[K[{bar}] {text}", end=end, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
