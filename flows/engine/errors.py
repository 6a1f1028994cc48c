"""The error of a failed stage, and one-line errors for problems of the operating system."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from jora_core.base.errors import InputError
from jora_core.base.secrets import mask

# What the user can fix: space, rights, a wrong path. Any other error is a failure.
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
# The errors that can happen at any write, to any path.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class StageFailed(RuntimeError):
    """A stage failed for a reason other than its input. Another run may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class GateFailed(StageFailed):
    """The evaluation is below a gate of the configuration. Another run would end in the same way."""


@contextmanager
def one_line_os_errors(
    action: str, path: Path | str, numbers: Collection[int] = frozenset(_MENDABLE)
) -> Iterator[None]:
    """Turn a full disk or a missing right inside the block into an error ``cannot <action> <path>: …``.

    Args:
        action: a verb with its object, such as "write to store".
        path: file or folder of the action.
        numbers: `errno` numbers of the errors to turn, by default all that a user can fix. Other errors stay
            unchanged.

    Raises:
        InputError: in place of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        # An I/O error of a failing disk, for example, keeps its traceback: there is no advice for it.
        if error.errno is None or error.errno not in numbers:
            raise
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot {action} {path}: {reason}; {_MENDABLE[error.errno]}") from error
