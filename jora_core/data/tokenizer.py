"""Tokenization of text with the tokenizer of a model folder.

``tokenizer.json`` is read with the `tokenizers` library, which is about ten times faster to import and to run
than `transformers`. `transformers` is used only where a folder has nothing but a sentencepiece
``tokenizer.model``. The tokenizer never adds special tokens. Callers add BOS and EOS, so that no prompt
starts with two BOS tokens. Text never becomes a special token: ``</s>`` in a document is encoded as the
characters that it has. Where a template means the token, it writes the private text that `mark` gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object, refuse_lfs_pointer
from jora_core.data.special_tokens import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    check_token_id,
    read_special_tokens,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# First and last character of a private text that stands for a control token.
PRIVATE = "\U0010fffe\U0010ffff"
# Texts in one call of the library: its results hold much beside the ids, so they must not pile up.
_CHUNK = 4096
# A text of JSON, the key of a file's merges, some thousands of them, and the end of their list. The key with
# a list behind it stands nowhere else: in the vocabulary a number follows it. No more at once, because each
# repetition is remembered. Possessive repetitions would not be, but they find too little before Python 3.11.5
# (https://github.com/python/cpython/issues/106052).
_TEXT = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MERGE = rb"(?:\[\s*" + _TEXT + rb"\s*,\s*" + _TEXT + rb"\s*\]|" + _TEXT + rb")"
_MERGES_BEGIN = re.compile(rb'"merges"\s*:\s*\[')
_MERGES_PART = re.compile(rb"(?:[\s,]*" + _MERGE + rb"){1,%d}" % _CHUNK, re.DOTALL)
_MERGES_END = re.compile(rb"\s*\]")
# A line of a file of tiktoken, such as that of Llama 3: a token in base64, and its rank.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
# What decides the tokens of a text.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)


@dataclass(frozen=True)
class TextTokenizer:
    """A model's tokenizer with its special ids; `bos_id` is None for models without a BOS token.

    `digest` is the SHA-256 of the files that determine the token ids of a text. `controls` are the ids of the
    control tokens by text, and `names` their texts by role, such as `eos_token`. `mark(text)` returns the
    private text that is encoded as the control token `text`. `folder` is the model folder.
    """

    encode_many: Callable[[list[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    # stream(ids) gives a function: given the next id, it returns the text that this id completes.
    stream: Callable[[Sequence[int]], Callable[[int], str | None]]
    vocab_size: int
    bos_id: int | None
    eos_id: int
    digest: str = ""
    controls: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    mark: Callable[[str], str] = str
    folder: Path | None = None

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

    def text_of(self, number: int) -> str:
        """Return the text of a control token, for messages."""
        return next((text for text, found in self.controls.items() if found == number), f"token {number}")

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids (int32 [T]) of one text, without special tokens."""
        return np.asarray(self.encode_many([text])[0], dtype=np.int32)


def load_tokenizer(folder: Path, vocab_size: int | None = None, *, encodes: bool = True) -> TextTokenizer:
    """Read the tokenizer of a Hugging Face model folder.

    Args:
        folder: folder with tokenizer.json (or tokenizer.model) and, for the special tokens,
            tokenizer_config.json, special_tokens_map.json or config.json.
        vocab_size: rows of the model's embedding, an upper bound of the token ids; None if unknown.
        encodes: whether texts will be encoded. False is for ids, names and templates, and takes a third of
            the memory where the vocabulary is large; see `open_tokenizer`.

    Raises:
        InputError: no tokenizer, no EOS token, or a special token without a row in the embedding.
    """
    folder = Path(folder)
    tokenizer = open_tokenizer(folder, merges=encodes)
    special = read_special_tokens(folder, tokenizer, vocab_size)
    size = tokenizer.get_vocab_size()
    text_encoder = _without_controls(tokenizer, special.controls) if encodes else tokenizer
    # Id of a private text → id of the control token that it stands for.
    aliases: dict[int, int] = {}

    def mark(text: str) -> str:
        return _add_alias(text_encoder, tokenizer, special.controls[text], aliases)

    def encode_many(texts: list[str]) -> list[list[int]]:
        if not encodes:
            raise RuntimeError(f"{folder}: the tokenizer was read without its merges, so it encodes no text")
        try:
            # The fast variant leaves out the offsets of characters, which nothing here needs.
            many = [e.ids for e in text_encoder.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as err:  # the library raises bare Exception where a word has no token
            raise InputError(
                f"{folder}: the tokenizer cannot encode a text ({str(err).splitlines()[0]}); use one with a "
                "token for unknown words (unk_token)"
            ) from None
        if aliases:
            many = [[aliases.get(number, number) for number in ids] for ids in many]
        # Not before a text needs it: Gemma 3's tokenizer has a token for images, and no row for it.
        if vocab_size is not None:
            for text, ids in zip(texts, many, strict=True):
                if max(ids, default=0) >= vocab_size:
                    raise InputError(
                        f"{folder}: the tokenizer gives {tokenizer.id_to_token(max(ids))!r} in the text "
                        f"{_shown(text)} the id {max(ids)}, but the model's embedding has {vocab_size} rows; "
                        "use the tokenizer that belongs to the model"
                    )
        return many

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def stream(ids: Sequence[int]) -> Callable[[int], str | None]:
        from tokenizers.decoders import DecodeStream

        state = DecodeStream(list(ids), skip_special_tokens=True)
        return lambda token: state.step(tokenizer, token)

    return TextTokenizer(
        encode_many,
        decode,
        stream,
        size,
        special.bos_id,
        special.eos_id,
        _files_digest(folder),
        special.controls,
        special.names,
        mark,
        folder,
    )


def open_tokenizer(folder: Path, *, merges: bool = True) -> Tokenizer:
    """Open the tokenizer of a model folder as the `tokenizers` library has it.

    Args:
        folder: the model folder.
        merges: False leaves the merges of a ``tokenizer.json`` out. What is left knows all ids and texts of
            tokens, but encodes texts as characters. A large vocabulary takes a third of the memory then.

    Raises:
        InputError: no tokenizer, or one that cannot be read.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return _load_fast(path, merges)
    if (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(folder)
    raise InputError(
        f"{folder}: no tokenizer.json or tokenizer.model; copy the model's tokenizer files there"
    )


def read_merges(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a folder's byte-pair tokenizer, by rank, some thousands at a time."""
    path = folder / "tokenizer.json"
    raw = path.read_bytes() if path.is_file() else open_tokenizer(folder).to_str().encode()
    for begin, end in _merge_parts(raw):
        yield from _pairs(raw[begin:end])


def _merge_parts(raw: bytes) -> list[tuple[int, int]]:
    """Return (begin, end) of the parts of a ``tokenizer.json`` that are merges, one behind the other."""
    key = _MERGES_BEGIN.search(raw)
    if key is None:
        return []
    parts, end = [], key.end()
    while part := _MERGES_PART.match(raw, end):
        parts.append(part.span())
        end = part.end()
    return parts if _MERGES_END.match(raw, end) else []


def _pairs(part: bytes) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a part of the merges; older files write a pair as one text."""
    # A part begins with the comma behind the part before.
    for pair in json.loads(b"[" + part.strip().removeprefix(b",") + b"]"):
        left, right = pair if isinstance(pair, list) else pair.split(" ", 1)
        yield left, right


def end_tokens(folder: Path, config: ModelConfig, tokenizer: TextTokenizer, *more: int) -> tuple[int, ...]:
    """Return all token ids that end generation: those of tokenizer, config and generation_config.json.

    Args:
        folder: the model folder.
        config: the model's.
        tokenizer: the model's.
        more: further ones, such as the token that ends an answer in a chat template.
    """
    ends = {tokenizer.eos_id, *config.eos_token_ids, *more}
    path = Path(folder) / "generation_config.json"
    if path.exists():
        # The instruction models of Llama 3 end a turn with <|eot_id|>, which only this file names.
        named = read_json_object(path, f"model folder {folder}").get("eos_token_id")
        for end in named if isinstance(named, list) else [] if named is None else [named]:
            ends.add(check_token_id(f"{path}: eos_token_id", end, config.vocab_size))
    return tuple(sorted(ends))


def _files_digest(folder: Path) -> str:
    # Token files in caches are named by this digest: a change of what texts become needs another word here.
    whole = hashlib.sha256(b"controls as text")
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            # With the name: the same content in another file is another tokenizer.
            whole.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return whole.hexdigest()


def _load_fast(path: Path, merges: bool) -> Tokenizer:
    from tokenizers import Tokenizer

    raw = path.read_bytes()
    refuse_lfs_pointer(path, raw)
    if not merges:
        raw = _without_merges(raw)
    try:
        tokenizer = Tokenizer.from_buffer(raw.removeprefix(BOM_UTF8))
    except Exception as err:  # the library raises bare Exception for a broken file
        raise InputError(f"cannot read tokenizer {path}: {str(err).splitlines()[0]}") from None
    # A saved tokenizer may contain settings of padding or truncation.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _without_merges(raw: bytes) -> bytes:
    """Return a ``tokenizer.json`` with an empty list of merges."""
    # As bytes, without parsing: what the file becomes in Python is as large as what the library makes of it.
    parts = _merge_parts(raw)
    return raw[: parts[0][0]] + raw[parts[-1][1] :] if parts else raw


def _require_sentencepiece(path: Path) -> None:
    """Refuse a file that is neither a model of SentencePiece nor the ranks of tiktoken."""
    from sentencepiece import SentencePieceProcessor

    raw = path.read_bytes()
    refuse_lfs_pointer(path, raw)
    if _TIKTOKEN.match(raw):
        return
    try:
        # An empty text loads as no model at all, and fails only when it is used.
        known = SentencePieceProcessor(model_proto=raw).GetPieceSize() if raw else 0
    except RuntimeError:
        known = 0
    if not known:
        raise InputError(f"{path} is truncated or no SentencePiece model; fetch it again") from None


def _load_sentencepiece(folder: Path) -> Tokenizer:
    # Before transformers, which takes any file that it cannot read for one of tiktoken's.
    _require_sentencepiece(folder / "tokenizer.model")
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


def _without_controls(tokenizer: Tokenizer, controls: Mapping[str, int]) -> Tokenizer:
    """Return a tokenizer that encodes the texts of control tokens as any other text.

    Args:
        tokenizer: the model's, which is set to encode special tokens as text.
        controls: ids of the control tokens, by text.
    """
    tokenizer.encode_special_tokens = True
    # That setting covers tokens that the file marks as special. The vocabulary itself may have them too.
    probes = [form for text in controls for form in (text, f" {text} ", f"a{text}a")]
    model = tokenizer.model
    byte_pairs = type(model).__name__ == "BPE"
    inside = not byte_pairs and any(model.token_to_id(text) is not None for text in controls)
    if not inside:
        numbers = set(controls.values())
        unknown = getattr(model, "unk_token", None)
        if unknown is not None:
            numbers.discard(controls.get(unknown, -1))
        found = tokenizer.encode_batch_fast(probes, add_special_tokens=False)
        if all(numbers.isdisjoint(each.ids) for each in found):
            return tokenizer
    return _renamed(tokenizer, controls)


def _private(number: int) -> str:
    """Return the private text of a control token, by its id."""
    # Noncharacters of Unicode: they are never assigned, and texts do not hold them.
    return f"{PRIVATE[0]}{number}{PRIVATE[1]}"


def _add_alias(encoder: Tokenizer, tokenizer: Tokenizer, number: int, aliases: dict[int, int]) -> str:
    """Let the encoder read the private text of a control token, and return the text.

    Args:
        encoder: the tokenizer that encodes texts, which is changed.
        tokenizer: the model's, which knows the control token.
        number: id of the control token.
        aliases: id of each private text to the id of its control token, which is extended.
    """
    from tokenizers import AddedToken

    text = _private(number)
    if number in aliases.values():
        return text
    known = tokenizer.get_added_tokens_decoder().get(number)
    # Phi-3's <|end|> takes the blanks behind it, and its private text must do the same. A special alias would
    # be read as text, as all special tokens are.
    sides = {"lstrip": known.lstrip, "rstrip": known.rstrip} if known is not None else {}
    encoder.add_tokens([AddedToken(text, normalized=False, special=False, **sides)])
    found = encoder.token_to_id(text)
    assert found is not None
    aliases[found] = number
    return text


def _renamed(tokenizer: Tokenizer, controls: Mapping[str, int]) -> Tokenizer:
    """Return a copy of a tokenizer whose control tokens have names that no text holds."""
    from tokenizers import Tokenizer

    def rename(text: str) -> str:
        return _private(controls[text]) if text in controls else text

    fields: dict[str, Any] = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [each for each in fields["added_tokens"] if each["content"] not in controls]
    fields["post_processor"] = None
    model = fields["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        # Unigram: every control token has the best score, so a text with one would always become it.
        model["vocab"] = [[rename(piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {rename(text): number for text, number in vocabulary.items()}
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model:
        pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if controls.keys().isdisjoint([*pair, "".join(pair)])]
    return Tokenizer.from_str(json.dumps(fields))


def _shown(text: str) -> str:
    """Return a text for an error message, on one line and shortened."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
