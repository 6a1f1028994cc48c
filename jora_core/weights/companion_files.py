"""Copying of a model folder's other files: tokenizer, generation settings, licence."""

from __future__ import annotations

import shutil
from codecs import BOM_UTF8
from pathlib import Path

from jora_core.base.atomic_files import atomic_path
from jora_core.data.tokenizer import TOKENIZER_FILES

# Patterns of the files that a derived model keeps: special tokens, padding and chat template are the base's.
# Beside the files that this core reads there are those of slow tokenizers, which transformers falls back to.
COMPANION_PATTERNS = (
    *TOKENIZER_FILES,
    "tokenizer*",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files of a model folder other than weights and config, each file atomically.

    Args:
        source: the base model's folder.
        folder: the derived model's folder. If it is `source`, nothing is done.
    """
    if source.resolve() == folder.resolve():
        return
    # A set, because a file can match several patterns.
    found = {path for pattern in COMPANION_PATTERNS for path in source.glob(pattern)}
    # Bytes are copied, because a tokenizer that is loaded and saved again may come out different.
    for path in sorted(found):
        if path.is_file():
            copy_file(path, folder / path.relative_to(source))


def copy_file(source: Path, target: Path) -> None:
    """Copy one file atomically. A byte order mark of a JSON file is left out: `transformers` refuses it."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        if source.suffix == ".json":
            raw = temporary.read_bytes()
            if raw.startswith(BOM_UTF8):
                temporary.write_bytes(raw.removeprefix(BOM_UTF8))
