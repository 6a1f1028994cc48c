"""The error for bad input, as opposed to a failure of the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_LONGEST_MESSAGE = 1000  # characters


# What every message passes, see `jora_core.base.secrets`; the last one counts.
_masks: list[Callable[[str], str]] = [str]


def mask_errors_with(mask: Callable[[str], str]) -> None:
    """Let all later messages of `InputError` pass a function that hides secrets."""
    if _masks[-1] is not mask:
        _masks.append(mask)


class InputError(ValueError):
    """Bad input, described in one line.

    The line says what is wrong, where (file, row, field), what was expected, and how to fix it.

    The command line prints it as ``error: …`` and ends with exit code 2, without a traceback.
    """

    def __init__(self, message: str) -> None:
        # A name of bytes that are not UTF-8 cannot be printed; its escapes can.
        plain = message.encode("utf-8", "backslashreplace").decode()
        text = " ".join(_masks[-1](plain).split())
        if len(text) > _LONGEST_MESSAGE:  # the content of a broken file may be part of it
            text = f"{text[: _LONGEST_MESSAGE // 2]} … {text[-_LONGEST_MESSAGE // 3 :]}"
        super().__init__(text)


def read_error(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be read."""
    reason = error.strerror or str(error)
    return InputError(f"{path}: cannot be read ({reason}); check the file and its permissions")


def write_error(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be written."""
    reason = error.strerror or str(error)
    return InputError(
        f"{path}: cannot be written ({reason}); check free space and permissions of {path.parent}"
    )
