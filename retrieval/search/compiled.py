"""Compile functions over arrays to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function to machine code. The code is cached on disk if numba finds a folder to write to."""
    try:
        # nogil: threads run it in parallel. cache: later processes load machine code instead of compiling for
        # seconds. error_model: a division by zero gives inf as in numpy, and no check is compiled into the
        # loops. fastmath stays off, because it reorders sums, and results must equal those of the reference
        # bit for bit.
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither beside this file nor in the user's cache folder
        return numba.njit(nogil=True, error_model="numpy")(function)
