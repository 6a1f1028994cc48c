"""The folder of the tokenizer that counts tokens."""

from __future__ import annotations

from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import expand_path
from retrieval.settings.context import ContextConfig


def tokenizer_folder(config: ContextConfig) -> Path:
    """Return the folder of the tokenizer that counts tokens.

    Raises:
        InputError: none is configured.
    """
    if not config.tokenizer:
        raise InputError("context.tokenizer is empty, but tokens are to be counted; give the model's folder")
    return Path(expand_path(config.tokenizer, "context.tokenizer"))
