"""The limits of reading that hold at the moment. The configuration sets them for the time of a build.

Files are opened deep inside the readers. A context variable brings the limits there without an argument of
every function on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.settings.limits import InputLimits

#: A packed file may always unpack to so many bytes, because small files of one letter pack very well.
ALWAYS_ALLOWED = 1 << 26


class ReadingLimits(InputLimits):
    """What reading may do: the limits of the configuration, and whether links may lead out of a source."""

    allow_links_outside: bool = False

    @property
    def value_bytes(self) -> int:
        """The bytes of one line or value."""
        return self.value_mb << 20

    def unpacked_bytes(self, packed: int) -> int:
        """Return how many bytes a packed file of `packed` bytes may unpack to."""
        return max(ALWAYS_ALLOWED, packed * self.unpacked_ratio)

    def too_large(self, path: Path | str) -> InputError:
        """Return the error for a file that unpacks to too much."""
        return InputError(
            f"{path}: unpacks to more than {self.unpacked_ratio} times its size; if the file can be trusted, "
            "raise context.limits.unpacked_ratio"
        )

    def value_too_large(self, where: str, what: str) -> InputError:
        """Return the error for one value that is too large. `what` names it, such as "a line"."""
        return InputError(
            f"{where}: {what} of more than {self.value_mb} MB; cut it, or raise context.limits.value_mb"
        )


_DEFAULT = ReadingLimits()
_LIMITS: ContextVar[ReadingLimits] = ContextVar("reading_limits", default=_DEFAULT)


def reading_limits() -> ReadingLimits:
    """Return the limits that hold now."""
    return _LIMITS.get()


@contextmanager
def limited_to(limits: ReadingLimits) -> Iterator[None]:
    """Set the limits for a `with` block."""
    token = _LIMITS.set(limits)
    try:
        yield
    finally:
        _LIMITS.reset(token)
