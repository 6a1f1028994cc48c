"""The tokenizer, chat template and special tokens of a model folder as metadata of a GGUF file."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.base.notices import notice
from jora_core.data.special_tokens import TOKENIZER_CONFIG, read_special_tokens
from jora_core.data.tokenizer import open_tokenizer, read_merges
from jora_core.parameters.freed_memory import release_freed_memory
from jora_core.weights.gguf.pre_tokenizers import find_pre_tokenizer
from jora_core.weights.gguf.read_tokenizer import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# The score of a piece that no merge makes, below all others.
_NO_MERGE = -1e9


class PackedTexts(Sequence[bytes]):
    """Texts as UTF-8 in one piece: a few bytes each, where Python's own strings take a hundred."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Pack texts, which may be made one by one."""
        packed, ends = bytearray(), array("Q", [0])
        for text in texts:
            packed += text.encode()
            ends.append(len(packed))
        self._packed, self._ends = bytes(packed), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """Return a text, or a list of them."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self._packed[self._ends[number] : self._ends[number + 1]]


def tokenizer_fields(folder: Path, rows: int) -> dict[str, Any]:
    """Return the metadata fields of a folder's tokenizer, but for `turn_end`.

    Args:
        folder: model folder in Hugging Face layout.
        rows: rows of the embedding. Rows without a token get one that no text becomes.

    Raises:
        InputError: the folder has no tokenizer, or one that llama.cpp does not know.
    """
    fields, special = _fields_without_merges(folder, rows)
    # The library's tokenizer is as large as all fields together, and is not needed beside the merges.
    release_freed_memory()
    tokens = fields["tokens"]
    scores = dict.fromkeys(tokens, _NO_MERGE) if fields["model"] == "llama" else {}
    spaced = False

    def merged() -> Iterator[str]:
        nonlocal spaced
        for rank, (left, right) in enumerate(read_merges(folder)):
            spaced = spaced or " " in left or " " in right
            # The first merge that makes a token decides.
            if scores.get(left + right) == _NO_MERGE:
                scores[left + right] = -float(rank)
            yield f"{left} {right}"

    merges = PackedTexts(merged())
    if scores:
        fields["scores"] = array("d", (scores[token] for token in tokens))
    fields["tokens"] = PackedTexts(tokens)
    # In a file of scores, too: llama.cpp ignores them there, and other readers need not derive them.
    if not spaced:
        fields["merges"] = merges
    return fields | special


def _fields_without_merges(folder: Path, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of the tokens and the steps of a tokenizer, and those of the special tokens."""
    tokenizer = open_tokenizer(folder, merges=False)
    model = tokenizer.model
    if type(model).__name__ != "BPE":
        raise InputError(
            f"{folder}: a tokenizer of kind {type(model).__name__} is not written to GGUF; leave gguf out of "
            "export.formats"
        )
    tokens, kinds = _vocabulary(folder, tokenizer, rows)
    fields: dict[str, Any] = {"tokens": tokens, "token_type": array("i", kinds)}
    steps = {name: _part(getattr(tokenizer, name)) for name in ("normalizer", "pre_tokenizer")}
    if model.byte_fallback:
        fields |= {"model": "llama", "pre": "default", "add_space_prefix": _adds_space(steps)}
    else:
        splitting = find_pre_tokenizer({**steps, "model": {"ignore_merges": model.ignore_merges}})
        if splitting is None:
            raise InputError(
                f"{folder / 'tokenizer.json'}: llama.cpp does not know this pre_tokenizer, so it would read "
                "texts differently; leave gguf out of export.formats"
            )
        fields |= {"model": "gpt2", "pre": splitting.names[0]}
    special = read_special_tokens(folder, tokenizer, rows)
    named = _named_tokens(folder, tokenizer)
    ids = {
        "bos": special.bos_id if special.bos_id is not None else named.get("bos"),
        "eos": special.eos_id,
        "unknown": named.get("unk"),
        "padding": named.get("pad"),
    }
    added = {"add_bos_token": special.bos_id is not None, "add_eos_token": False}
    return fields, added | {f"{name}_token_id": number for name, number in ids.items() if number is not None}


def _part(part: Any) -> Any:
    """Return a step of a tokenizer as ``tokenizer.json`` has it, with all its fields."""
    return None if part is None else json.loads(part.__getstate__())


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a model folder by name; the main one has the name default.

    Raises:
        InputError: a file cannot be read.
    """
    found: dict[str, str] = {}
    path = folder / TOKENIZER_CONFIG
    given = read_json_object(path, f"model folder {folder}").get("chat_template") if path.is_file() else None
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        found |= {each["name"]: each["template"] for each in given if isinstance(each, dict)}
    # Files have precedence, as in transformers.
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return found


def _vocabulary(folder: Path, tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """Return the texts and kinds of all rows of the embedding."""
    model = tokenizer.model
    added = tokenizer.get_added_tokens_decoder()
    tokens, kinds, found = [], [], 0
    # One by one: a dictionary of a large vocabulary takes as much memory as the tokens themselves.
    for number in range(rows):
        token = tokenizer.id_to_token(number)
        found += token is not None
        if token is None:
            tokens.append(f"[PAD{number}]")
            kinds.append(UNUSED)
            continue
        tokens.append(token)
        if token == model.unk_token:
            kinds.append(UNKNOWN)
        elif number in added:
            kinds.append(CONTROL if added[number].special else USER_DEFINED)
        else:
            is_byte = model.byte_fallback and _BYTE.fullmatch(token)
            kinds.append(BYTE if is_byte else NORMAL)
    if beyond := tokenizer.get_vocab_size() - found:
        ids = tokenizer.get_vocab()
        first = min((token for token in ids if ids[token] >= rows), key=ids.__getitem__)
        notice(f"{folder}: {beyond} tokens without a row in the embedding are left out, such as {first}")
    return tokens, kinds


def _adds_space(steps: Mapping[str, Any]) -> bool:
    """Return whether texts begin with a space that they do not have."""
    parts = _flat(steps["normalizer"], "normalizers") + _flat(steps["pre_tokenizer"], "pretokenizers")
    return any(
        (part.get("type") == "Prepend" and part.get("prepend") == SPACE)
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _flat(value: Any, inner: str) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    return value[inner] if value.get("type") == "Sequence" else [value]


def _named_tokens(folder: Path, tokenizer: Any) -> dict[str, int]:
    """Return the ids of the tokens that ``tokenizer_config.json`` names."""
    path = folder / TOKENIZER_CONFIG
    given = read_json_object(path, f"model folder {folder}") if path.is_file() else {}
    found = {}
    for name in ("bos", "unk", "pad"):
        token = given.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if number is not None:
            found[name] = int(number)
    return found


def turn_end(folder: Path, fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the field of another token that ends generation; none if there is no such token.

    Args:
        folder: model folder, whose ``generation_config.json`` names the token.
        fields: what `tokenizer_fields` returns.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    ends: Any = read_json_object(path, f"model folder {folder}").get("eos_token_id")
    eos, rows = fields["eos_token_id"], len(fields["tokens"])
    for each in ends if isinstance(ends, list) else [ends]:
        if isinstance(each, int) and each != eos and each < rows:
            return {"eot_token_id": each}
    return {}
