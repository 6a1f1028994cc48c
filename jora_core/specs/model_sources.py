"""The kinds of base models on disk, told by names alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

# A model folder in Hugging Face layout, or a GGUF file.
SourceKind = Literal["folder", "gguf"]
GGUF_SUFFIX = ".gguf"
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def source_kind(path: Path) -> SourceKind:
    """Return the kind of a base model; a path that does not exist counts by its suffix."""
    return "gguf" if path.suffix.lower() == GGUF_SUFFIX and not path.is_dir() else "folder"


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a GGUF model of which `path` is one, whether they exist or not."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], int(match["count"])
    return [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
