"""The tokenizer, chat template and special tokens of a model folder as metadata of a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.base.notices import notice
from jora_core.data.special_tokens import TOKENIZER_CONFIG, read_special_tokens
from jora_core.data.tokenizer import open_tokenizer, read_merges
from jora_core.weights.gguf.pre_tokenizers import find_pre_tokenizer
from jora_core.weights.gguf.read_tokenizer import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# The score of a piece that no merge makes, below all others.
_NO_MERGE = -1e9


def tokenizer_fields(folder: Path, rows: int) -> dict[str, Any]:
    """Return the metadata fields of a folder's tokenizer.

    Args:
        folder: model folder in Hugging Face layout.
        rows: rows of the embedding. Rows without a token get one that no text becomes.

    Raises:
        InputError: the folder has no tokenizer, or one that llama.cpp does not know.
    """
    tokenizer = open_tokenizer(folder, merges=False)
    model = tokenizer.model
    if type(model).__name__ != "BPE":
        raise InputError(
            f"{folder}: a tokenizer of kind {type(model).__name__} is not written to GGUF; leave gguf out of "
            "export.formats"
        )
    tokens, kinds = _vocabulary(folder, tokenizer, rows)
    fields: dict[str, Any] = {"tokens": tokens, "token_type": kinds}
    steps = {name: _part(getattr(tokenizer, name)) for name in ("normalizer", "pre_tokenizer")}
    if model.byte_fallback:
        scores = dict.fromkeys(tokens, _NO_MERGE)
        fields |= {"model": "llama", "pre": "default", "add_space_prefix": _adds_space(steps)}
    else:
        scores = {}
        splitting = find_pre_tokenizer({**steps, "model": {"ignore_merges": model.ignore_merges}})
        if splitting is None:
            raise InputError(
                f"{folder / 'tokenizer.json'}: llama.cpp does not know this pre_tokenizer, so it would read "
                "texts differently; leave gguf out of export.formats"
            )
        fields |= {"model": "gpt2", "pre": splitting.names[0]}
    merges, spaced = [], False
    for rank, (left, right) in enumerate(read_merges(folder, tokenizer)):
        merges.append(f"{left} {right}")
        spaced = spaced or " " in left or " " in right
        # The first merge that makes a token decides.
        if scores.get(left + right) == _NO_MERGE:
            scores[left + right] = -float(rank)
    if scores:
        fields["scores"] = [scores[token] for token in tokens]
    # In a file of scores, too: llama.cpp ignores them there, and other readers need not derive them.
    if not spaced:
        fields["merges"] = merges
    special = read_special_tokens(folder, tokenizer, rows)
    named = _named_tokens(folder, tokenizer)
    fields["add_bos_token"] = special.bos_id is not None
    fields["add_eos_token"] = False
    ids = {
        "bos": special.bos_id if special.bos_id is not None else named.get("bos"),
        "eos": special.eos_id,
        "unknown": named.get("unk"),
        "padding": named.get("pad"),
        "eot": _turn_end(folder, special.eos_id, rows),
    }
    return fields | {f"{name}_token_id": number for name, number in ids.items() if number is not None}


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
    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=False).items()}
    added = tokenizer.get_added_tokens_decoder()
    by_id |= {number: each.content for number, each in added.items()}
    if beyond := [token for number, token in by_id.items() if number >= rows]:
        notice(
            f"{folder}: {len(beyond)} tokens without a row in the embedding are left out, such as {beyond[0]}"
        )
    tokens, kinds = [], []
    for number in range(rows):
        token = by_id.get(number)
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


def _turn_end(folder: Path, eos: int, rows: int) -> int | None:
    """Return the id of another token that ends generation, None for none."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    ends: Any = read_json_object(path, f"model folder {folder}").get("eos_token_id")
    others: Sequence[Any] = ends if isinstance(ends, list) else [ends]
    return next((each for each in others if isinstance(each, int) and each != eos and each < rows), None)
