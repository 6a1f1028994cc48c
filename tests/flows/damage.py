"""Ways to damage a file, as a failing disk or a careless copy does."""

from __future__ import annotations

import os
import random
from pathlib import Path

KINDS = ("flip", "truncate", "delete")


def damage(path: Path, kind: str, seed: int, place: int | None = None) -> None:
    """Damage one file.

    Args:
        path: the file.
        kind: one of `KINDS`; an empty file can only be deleted, and then it is.
        seed: decides the place.
        place: byte to flip or to cut at, in place of a drawn one.
    """
    before = path.stat()
    data = bytearray(path.read_bytes())
    rng = random.Random(f"{path.name} {kind} {seed}")
    where = rng.randrange(len(data)) if place is None and data else place or 0
    if kind == "delete" or not data:
        path.unlink()
        return
    if kind == "flip":
        data[where] ^= 1 << rng.randrange(8)
    else:
        del data[where:]
    path.write_bytes(bytes(data))
    # A disk that loses a bit changes no time.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
