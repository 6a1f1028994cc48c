"""The ways in which a pipeline can end other than well, and the operating system's errors as one line."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from jora_core.base.errors import InputError

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
# The part of it that can happen at any write, wherever it is.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class StageFailed(RuntimeError):
    """A stage could not be finished for a reason that is not in its input; running it again may help."""


@contextmanager
def one_line_os_errors(
    action: str, path: Path | str, numbers: Collection[int] = frozenset(_MENDABLE)
) -> Iterator[None]:
    """Turn a full disk or a missing right inside the block into one line: ``cannot <action> <path>: …``.

    Args:
        action: a verb with its object, such as "write to store".
        path: what the action is done to.
        numbers: the errors (of `errno`) that are turned; by default all that a user can mend. Others pass.

    Raises:
        InputError: in place of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        # An I/O error of a dying disk, say, keeps its traceback: no advice of ours would be right.
        if error.errno is None or error.errno not in numbers:
            raise
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot {action} {path}: {reason}; {_MENDABLE[error.errno]}") from error
