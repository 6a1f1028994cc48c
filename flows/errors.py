"""The ways in which a pipeline can end other than well, and the operating system's errors as one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The rooms below raise their own class of the same name; this one serves the pipeline and the training
# core, so that an order refused while it is built and one refused by the child look alike to whoever
# catches them.
from jora_core.errors import InputError

__all__ = ["InputError", "StageFailed", "is_input_error", "one_line_os_errors"]

# What the user can mend: space, rights, a path that is not what it should be. Anything else is a failure.
_MENDABLE = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of the quota, or choose another folder",
    errno.EFBIG: "raise the file size limit, or choose another folder",
    errno.EACCES: "give this user the right, or choose another folder",
    errno.EPERM: "give this user the right, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a file stands where a folder should be; choose another folder",
    errno.ENOENT: "create it, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}


class StageFailed(RuntimeError):
    """A stage could not be finished for a reason that is not in its input; running it again may help."""


def is_input_error(error: BaseException) -> bool:
    """Whether ``error`` says that the input is wrong (exit status 2), whichever room raised it."""
    if isinstance(error, InputError):
        return True
    from retrieval.errors import InputError as RetrievalInputError

    return isinstance(error, RetrievalInputError)


@contextmanager
def one_line_os_errors(action: str, path: Path | str) -> Iterator[None]:
    """Turn a full disk or a missing right inside the block into one line: ``cannot <action> <path>: …``.

    Raises:
        InputError: in place of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        advice = _MENDABLE.get(error.errno or 0)
        if advice is None:
            raise
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot {action} {path}: {reason}; {advice}") from error
