"""The kinds of base models on disk, told by names alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

# A model folder in Hugging Face layout, a GGUF file, or a folder in Meta's layout.
SourceKind = Literal["folder", "gguf", "meta"]
GGUF_SUFFIX = ".gguf"
META_PARAMS, META_TOKENIZER = "params.json", "tokenizer.model"
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# What of a folder in Meta's layout is read beside the weights.
_META_FILES = (META_PARAMS, META_TOKENIZER, "tokenizer.json", "tokenizer_config.json")


def source_kind(path: Path) -> SourceKind:
    """Return the kind of a base model; a path that does not exist counts by its suffix."""
    if not path.is_dir():
        return "gguf" if path.suffix.lower() == GGUF_SUFFIX else "folder"
    # A repository may have both layouts side by side; then the one that needs no conversion is taken.
    whole = any((path / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))
    return "meta" if not whole and (path / META_PARAMS).is_file() and meta_shards(path) else "folder"


def source_files(source: Path) -> dict[str, Path]:
    """Return the files of a base model that is converted, by their names in its folder."""
    if source_kind(source) == "meta":
        files = [*meta_shards(source), *(source / name for name in _META_FILES)]
        return {f"model/{file.name}": file for file in files if file.is_file()}
    # By its place among the parts: a file that is renamed keeps its key.
    return {f"model/{number}.gguf": part for number, part in enumerate(gguf_parts(source))}


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a GGUF model of which `path` is one, whether they exist or not."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], int(match["count"])
    return [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def meta_shards(folder: Path) -> list[Path]:
    """Return the weights files of a folder in Meta's layout, in the sequence of their numbers."""
    return sorted(folder.glob("consolidated.*.pth"))
