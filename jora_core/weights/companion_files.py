"""The files that go with a model's weights: tokenizer and generation settings."""

from __future__ import annotations

from pathlib import Path

from jora_core.base.atomic_files import atomic_path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy what a model folder has beside its weights and config: a trained model keeps its tokenizer."""
    if source.resolve() == folder.resolve():
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes((source / name).read_bytes())
