"""The tokenizer of a model in Meta's layout as the files of a Hugging Face folder.

``tokenizer.model`` is a SentencePiece model in Llama 1 and 2, and a list of byte sequences with their ranks
(the format of tiktoken) in Llama 3. Both are written as a GGUF file's tokenizer is.
Source: `llama/tokenizer.py` of Meta's reference code.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.data.tokenizer import open_tokenizer
from jora_core.specs.model_sources import META_TOKENIZER
from jora_core.weights.companion_files import copy_companions
from jora_core.weights.gguf.read_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, write_tokenizer

# Special tokens of Llama 3, from the first id after the vocabulary; {} is numbered from 0 on.
_RESERVED = "<|reserved_special_token_{}|>"
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
_ENDS = ("<|begin_of_text|>", "<|end_of_text|>")
_LLAMA3 = (*_ENDS, _RESERVED, _RESERVED, _RESERVED, _RESERVED, *_HEADERS, _RESERVED, "<|eot_id|>")
_LLAMA31 = (*_ENDS, _RESERVED, _RESERVED, "<|finetune_right_pad_id|>", _RESERVED, *_HEADERS)
_LLAMA31 += ("<|eom_id|>", "<|eot_id|>", "<|python_tag|>")
# Texts whose tokens must be those of SentencePiece itself.
_PROBES = ("Hello, world", "  two  spaces ", "naïve 123.45 café", "你好，世界 🙂", "a\nb\tc", "x▁y", "नमस्ते")


@dataclass(frozen=True)
class _Tokenizer:
    """A tokenizer by the fields of GGUF files."""

    path: Path
    metadata: Mapping[str, Any]


def write_meta_tokenizer(source: Path, folder: Path, rows: int, newer: bool) -> None:
    """Write the tokenizer of a model in Meta's layout.

    Args:
        source: the model's folder. A ``tokenizer.json`` in it is taken as it is.
        folder: folder to write, made if missing.
        rows: rows of the embedding.
        newer: whether the special tokens are those of Llama 3.1 and later, where they are Llama 3's.

    Raises:
        InputError: there is no tokenizer, or one that cannot be read or written exactly.
    """
    if (source / "tokenizer.json").is_file():
        copy_companions(source, folder)
        return
    path = source / META_TOKENIZER
    if not path.is_file():
        raise InputError(
            f"{source} has no {META_TOKENIZER}; copy it there (Llama 2's download has it one folder above), "
            "or a tokenizer.json with tokenizer_config.json"
        )
    notice(f"{source}: Meta's layout has no chat template; name the prompts' format with prompt.template")
    try:
        ranks = _read_ranks(path)
        if ranks is not None:
            write_tokenizer(_Tokenizer(path, _byte_level(ranks, rows, newer)), folder)
            return
        processor = _open_sentencepiece(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    write_tokenizer(_Tokenizer(path, _sentencepiece(processor)), folder)
    written = open_tokenizer(folder)
    for text in _PROBES:
        if written.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise InputError(
                f"{path} cannot be written as tokenizer.json exactly (the text {text!r} gets other tokens); "
                "copy the tokenizer.json of the published model into its folder"
            )


def _open_sentencepiece(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is neither a SentencePiece model nor a list of ranks ({str(error).splitlines()[0]}); "
            "fetch it again"
        ) from None


def _sentencepiece(processor: Any) -> dict[str, Any]:
    count = processor.get_piece_size()
    kinds = []
    for number in range(count):
        if processor.is_unknown(number):
            kinds.append(UNKNOWN)
        elif processor.is_control(number):
            kinds.append(CONTROL)
        elif processor.is_byte(number):
            kinds.append(BYTE)
        else:
            kinds.append(UNUSED if processor.is_unused(number) else NORMAL)
    ids = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unknown": processor.unk_id()}
    return _fields(
        {
            "model": "llama",
            "tokens": [processor.id_to_piece(number) for number in range(count)],
            "scores": [processor.get_score(number) for number in range(count)],
            "token_type": kinds,
            "add_space_prefix": processor.encode("a", out_type=str)[0].startswith("▁"),
            **{f"{name}_token_id": number for name, number in ids.items() if number >= 0},
        }
    )


def _read_ranks(path: Path) -> list[bytes] | None:
    """Return the byte sequences of a list of ranks, by rank; None for a file of another format."""
    found: dict[int, bytes] = {}
    for line in path.read_bytes().splitlines():
        token, _, rank = line.partition(b" ")
        try:
            found[int(rank)] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            return None
    if not found or sorted(found) != list(range(len(found))):
        return None
    return [found[rank] for rank in range(len(found))]


def _byte_level(ranks: list[bytes], rows: int, newer: bool) -> dict[str, Any]:
    """Return the fields of a list of ranks, with Llama 3's special tokens behind it."""
    names: list[str] = []
    reserved = 0
    count = rows - len(ranks)
    for name in [*(_LLAMA31 if newer else _LLAMA3), *[_RESERVED] * count][:count]:
        names.append(name.format(reserved))
        reserved += name == _RESERVED
    letters = _byte_letters()
    texts = ["".join(letters[byte] for byte in token) for token in ranks]
    by_bytes = {token: rank for rank, token in enumerate(ranks)}
    merges = []
    # A token's rank is the rank of every merge that makes it.
    for token in ranks:
        cuts = [(by_bytes.get(token[:cut]), by_bytes.get(token[cut:])) for cut in range(1, len(token))]
        pairs = sorted((left, right) for left, right in cuts if left is not None and right is not None)
        merges += [f"{texts[left]} {texts[right]}" for left, right in pairs]
    begin = len(ranks)
    ends = {
        name: begin + names.index(f"<|{name}_id|>") for name in ("eot", "eom") if f"<|{name}_id|>" in names
    }
    return _fields(
        {
            "model": "gpt2",
            "pre": "llama-bpe",
            "tokens": texts + names,
            "token_type": [NORMAL] * len(texts) + [CONTROL] * len(names),
            "merges": merges,
            "bos_token_id": begin,
            "eos_token_id": begin + 1,
            **{f"{name}_token_id": number for name, number in ends.items()},
        }
    )


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"general.architecture": "llama"} | {
        f"tokenizer.ggml.{name}": each for name, each in values.items()
    }


def _byte_letters() -> list[str]:
    """Return the letter of each byte in byte-level vocabularies: itself if printable, else one from 256."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, others = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in printable else others))
        others += byte not in printable
    return letters
