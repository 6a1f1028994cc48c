"""Tokenization of text with the tokenizer of a model folder.

``tokenizer.json`` is read with the `tokenizers` library, which is about ten times faster to import and to run
than `transformers`. `transformers` is used only where a folder has nothing but a sentencepiece
``tokenizer.model``. The tokenizer never adds special tokens. Callers add BOS and EOS, so that no prompt
starts with two BOS tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# Texts in one call of the library: its results hold much beside the ids, so they must not pile up.
_CHUNK = 4096
# Looked for where no file names the token.
_USUAL_NAMES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
}
# What decides the tokens of a text.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TextTokenizer:
    """A model's tokenizer with its special ids; `bos_id` is None for models without a BOS token.

    `digest` is the SHA-256 of the files that determine the token ids of a text.
    """

    encode_many: Callable[[list[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    # stream(ids) gives a function: given the next id, it returns the text that this id completes.
    stream: Callable[[Sequence[int]], Callable[[int], str | None]]
    vocab_size: int
    bos_id: int | None
    eos_id: int
    digest: str = ""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids (int32 [T]) of each text, without special tokens.

        Equal texts are encoded once.
        """
        unique = list(dict.fromkeys(texts))
        ids: dict[str, np.ndarray] = {}
        for start in range(0, len(unique), _CHUNK):
            chunk = unique[start : start + _CHUNK]
            for text, tokens in zip(chunk, self.encode_many(chunk), strict=True):
                ids[text] = np.asarray(tokens, dtype=np.int32)
        return [ids[text] for text in texts]

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids (int32 [T]) of one text, without special tokens."""
        return np.asarray(self.encode_many([text])[0], dtype=np.int32)


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> TextTokenizer:
    """Read the tokenizer of a Hugging Face model folder.

    Args:
        folder: folder with tokenizer.json (or tokenizer.model) and, for the special tokens,
            tokenizer_config.json, special_tokens_map.json or config.json.
        vocab_size: rows of the model's embedding, an upper bound of the token ids; None if unknown.

    Raises:
        InputError: no tokenizer, no EOS token, or more tokens than embedding rows.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        tokenizer = _load_fast(path)
    elif (folder / "tokenizer.model").is_file():
        tokenizer = _load_sentencepiece(folder)
    else:
        raise InputError(
            f"{folder}: no tokenizer.json or tokenizer.model; copy the model's tokenizer files there"
        )
    bos_id = _bos_id(folder, tokenizer)
    eos_id = _special_id(folder, "eos", tokenizer)
    if eos_id is None:
        raise InputError(f"{folder}: the tokenizer has no EOS token; name eos_token in tokenizer_config.json")
    size = tokenizer.get_vocab_size()
    # Fewer tokens than rows are usual: embeddings are padded to a round size.
    if vocab_size is not None and size > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {size} tokens, the model's embedding {vocab_size} rows; "
            "use the tokenizer that belongs to the model"
        )

    def encode_many(texts: list[str]) -> list[list[int]]:
        # The fast variant leaves out the offsets of characters, which nothing here needs.
        return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def stream(ids: Sequence[int]) -> Callable[[int], str | None]:
        from tokenizers.decoders import DecodeStream

        state = DecodeStream(list(ids), skip_special_tokens=True)
        return lambda token: state.step(tokenizer, token)

    return TextTokenizer(encode_many, decode, stream, size, bos_id, eos_id, _files_digest(folder))


def end_tokens(folder: Path, config: ModelConfig, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Return all token ids that end generation: those of tokenizer, config and generation_config.json.

    Args:
        folder: the model folder.
        config: the model's.
        tokenizer: the model's.
    """
    ends = {tokenizer.eos_id, *config.eos_token_ids}
    path = Path(folder) / "generation_config.json"
    if path.exists():
        # The instruction models of Llama 3 end a turn with <|eot_id|>, which only this file names.
        more = read_json_object(path, f"model folder {folder}").get("eos_token_id")
        ends |= set(more if isinstance(more, list) else [] if more is None else [more])
    return tuple(sorted(ends))


def _files_digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            # With the name: the same content in another file is another tokenizer.
            whole.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return whole.hexdigest()


def _load_fast(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises bare Exception for a broken file
        raise InputError(f"cannot read tokenizer {path}: {str(err).splitlines()[0]}") from None
    # A saved tokenizer may contain settings of padding or truncation.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load_sentencepiece(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        # Local files only: transformers would look for a misspelled folder on the Hub.
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as err:
        raise InputError(f"cannot read tokenizer of {folder}: {str(err).splitlines()[0]}") from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{folder}: tokenizer.model has no fast form; convert it to tokenizer.json")
    backend.no_padding()
    backend.no_truncation()
    return backend


def _bos_id(folder: Path, tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that starts every text of this model, None if there is no such token.

    add_bos_token of tokenizer_config.json decides first, then the tokens that the tokenizer itself puts
    before a text. Only without both is a BOS token used that a file names: Qwen's config.json names a BOS
    token that starts no text.

    Raises:
        InputError: add_bos_token is true and no file names a BOS token, or more than one token precedes a
            text.
    """
    settings = _read_json(folder / "tokenizer_config.json")
    adds = settings.get("add_bos_token")
    if adds is False:
        return None
    if tokenizer.post_processor is not None:
        prefix = _ids_before(tokenizer)
        if len(prefix) > 1:
            raise InputError(
                f"{folder}: the tokenizer puts {len(prefix)} tokens before a text; at most one is supported"
            )
        if prefix or not adds:
            return prefix[0] if prefix else None
    if not adds and "bos_token" in settings and settings["bos_token"] is None:
        return None
    found = _special_id(folder, "bos", tokenizer)
    if adds and found is None:
        raise InputError(f"{folder}: add_bos_token is true; name bos_token in tokenizer_config.json")
    return found


def _ids_before(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the special tokens that a tokenizer puts before a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    special = encoding.special_tokens_mask
    return encoding.ids[: special.index(0) if 0 in special else 0]


def _special_id(folder: Path, which: str, tokenizer: Tokenizer) -> int | None:
    """Return the id of the BOS or EOS token, from the text that a file names, else from config.json."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read_json(folder / name).get(f"{which}_token")
        # Either text, or an object such as {"content": "<s>", "lstrip": false}.
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (found := tokenizer.token_to_id(text)) is not None:
            return int(found)
    found = _read_json(folder / "config.json").get(f"{which}_token_id")
    if isinstance(found, list):  # Llama 3 lists several ends; the first is the one to train on
        found = found[0] if found else None
    if found is not None:
        return int(found)
    ids = (tokenizer.token_to_id(name) for name in _USUAL_NAMES[which])
    return next((found for found in ids if found is not None), None)


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
