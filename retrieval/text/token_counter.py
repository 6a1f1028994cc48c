"""Count tokens with the tokenizer of a model folder. Budgets and chunks are measured in these tokens.

This module reads the same files as the training core, without importing the core. `tokenizer.json` is read
with the `tokenizers` library, else `tokenizer.model` with sentencepiece. Special tokens are never counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError

FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class TokenCounter:
    """A counter of the tokens of texts.

    `fast` is the underlying `tokenizers.Tokenizer`, or None for sentencepiece.
    """

    count: Callable[[str], int]
    fast: Any = None


def tokenizer_file(folder: Path, field: str = "context.tokenizer") -> Path:
    """Return the tokenizer file of a model folder, or the GGUF file itself, which decides the counts.

    Errors name the setting `field`.

    Raises:
        InputError: the folder has no such file.
    """
    if folder.suffix == ".gguf" and folder.is_file():  # its tokenizer is inside; the stage unpacks it
        return folder
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{field}: {folder} has no {' or '.join(FILES)}; give the folder of the base model")


def load_counter(folder: Path, field: str = "context.tokenizer") -> TokenCounter:
    """Load the token counter of a model folder. Errors name the setting `field`.

    Raises:
        InputError: the folder has no tokenizer file, or one that cannot be read.
    """
    path = tokenizer_file(folder, field)
    if path.suffix == ".gguf":
        raise InputError(f"{field}: {path} is a GGUF file; convert it with `jora convert {path} DIR`")
    try:
        return _fast(path) if path.suffix == ".json" else _sentencepiece(path)
    except Exception as error:  # both libraries raise bare exceptions for broken files
        raise InputError(f"{field}: tokenizer {path} cannot be read ({error})") from error


def _fast(path: Path) -> TokenCounter:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    # A saved tokenizer may hold settings of padding or truncation, which would change the counts.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # "</s>" in a document is text, as the training core reads it.
    tokenizer.encode_special_tokens = True
    return TokenCounter(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), tokenizer)


def _sentencepiece(path: Path) -> TokenCounter:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.LoadFromFile(str(path))
    return TokenCounter(lambda text: len(processor.EncodeAsIds(text)))
