"""The error that means "your input is wrong", told apart from a failure of the program."""

from __future__ import annotations


class InputError(ValueError):
    """One line for the user: what is wrong, where (file, row, field), what was expected, how to fix it.

    The command line prints it as ``error: …`` and ends with exit code 2, without a traceback.
    """
