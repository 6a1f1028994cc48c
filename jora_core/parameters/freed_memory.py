"""Giving memory that was freed back to the operating system."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def release_freed_memory() -> None:
    """Let the C library give back what it keeps of freed memory, where it can.

    glibc keeps the memory of many small blocks, such as those of a tokenizer with a large vocabulary. Later
    work would come on top of it.
    """
    gc.collect()
    trim_freed_memory()


def trim_freed_memory() -> None:
    """Do the same without a search for unused Python objects: quick enough for each tensor of a model."""
    # Other C libraries have no such function.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
