"""Lines for the user about what a command guesses, replaces or leaves out."""

from __future__ import annotations

import functools
import sys


@functools.cache
def notice(line: str) -> None:
    """Print one line to standard error. A process prints equal lines once."""
    # Cached: a model folder is opened more than once in a process, and each time would print the line again.
    print(f"note: {line}", file=sys.stderr, flush=True)
