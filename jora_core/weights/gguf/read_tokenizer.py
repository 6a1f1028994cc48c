"""The tokenizer of a GGUF file as the files of a Hugging Face folder.

The converter of transformers is not used: it takes seconds to import and twice the memory, and it leaves out
what GGUF files say by a name only: SmolLM's digits, Qwen's composed characters, Llama 3's whole words.
Source: `llama-vocab.cpp` of llama.cpp for the meaning of the fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jora_core.base.atomic_files import write_bytes, write_json
from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.weights.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

# Kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
_GEMMA = ("gemma", "gemma2", "gemma3")
# Rows of the embedding without a token, as llama.cpp's converter names them.
_PADDING = re.compile(r"\[PAD\d+\]")
# Tokens that end a turn where a chat template writes them, whatever EOS is; llama.cpp knows them by text too.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p"}


class MetadataSource(Protocol):
    """A file with a tokenizer that is described by the metadata fields of GGUF."""

    @property
    def path(self) -> Path:
        """The file, for messages."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The fields by name."""
        ...


@dataclass(frozen=True)
class _Vocabulary:
    """The vocabulary of a file: texts and kinds of its tokens, without rows for nothing at its end."""

    tokens: list[str]
    kinds: np.ndarray
    scores: np.ndarray | None
    merges: list[str] | None


def write_tokenizer(model: MetadataSource, folder: Path) -> None:
    """Write the tokenizer, the chat templates and the generation settings of a GGUF file.

    Args:
        model: a GGUF file, or another one whose tokenizer has the same fields.
        folder: folder to write, made if missing.

    Raises:
        InputError: the file has no tokenizer, or one of a kind that is not read.
    """
    fields = _fields(model)
    vocabulary = _read_vocabulary(model, fields)
    write_bytes(folder / "tokenizer.json", _tokenizer_json(model, fields, vocabulary))
    special = {
        name: number
        for name, theirs in _NAMES.items()
        if (number := fields.get(f"{theirs}_token_id")) is not None and number < len(vocabulary.tokens)
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {f"{name}_token": vocabulary.tokens[number] for name, number in special.items()}
    context = model.metadata.get(f"{model.metadata.get('general.architecture')}.context_length")
    if isinstance(context, int):
        settings["model_max_length"] = context
    write_json(folder / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False})
    templates = _write_templates(model, folder)
    _write_generation(model, folder, fields, special, _turn_ends(templates, vocabulary, fields))


def _fields(model: MetadataSource) -> dict[str, Any]:
    prefix = "tokenizer.ggml."
    return {
        name.removeprefix(prefix): value for name, value in model.metadata.items() if name.startswith(prefix)
    }


def _read_vocabulary(model: MetadataSource, fields: Mapping[str, Any]) -> _Vocabulary:
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(
            f"{model.path}: the file has no tokenizer (tokenizer.ggml.tokens); fetch a file with one, or "
            "convert the original repository"
        )
    kinds = fields.get("token_type")
    kinds = np.ones(len(tokens), np.int32) if kinds is None else np.asarray(kinds)
    scores = fields.get("scores")
    for name, values in (("token_type", kinds), ("scores", scores)):
        if values is not None and len(values) != len(tokens):
            raise InputError(
                f"{model.path}: tokenizer.ggml.{name} has {len(values)} values for {len(tokens)} tokens; "
                "fetch the file again"
            )
    count = len(tokens)
    while count and kinds[count - 1] in (UNUSED, USER_DEFINED) and _PADDING.fullmatch(tokens[count - 1]):
        count -= 1
    if count < len(tokens):
        notice(f"{model.path}: {len(tokens) - count} rows of the embedding have no token; they are padding")
    merges = fields.get("merges")
    return _Vocabulary(tokens[:count], kinds[:count], None if scores is None else scores[:count], merges)


def _tokenizer_json(model: MetadataSource, fields: Mapping[str, Any], vocabulary: _Vocabulary) -> bytes:
    own = model.metadata.get("tokenizer.huggingface.json")
    if isinstance(own, str):  # the original file, which GGUF allows beside its own fields
        return own.encode()
    kind = fields.get("model")
    if kind == "gpt2":
        parts, adds_bos = _byte_level(model, fields, vocabulary)
    elif kind == "llama":
        parts, adds_bos = _sentencepiece(model, fields, vocabulary), True
    else:
        raise InputError(
            f"{model.path}: a tokenizer of kind {kind!r} (tokenizer.ggml.model) is not read; expected gpt2 "
            "(byte-level BPE) or llama (SentencePiece)"
        )
    bos = fields.get("bos_token_id")
    begins = bool(fields.get("add_bos_token", adds_bos)) and bos is not None and bos < len(vocabulary.tokens)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(fields, vocabulary),
        **parts,
        "post_processor": _post_processor(
            vocabulary.tokens, int(bos) if begins and bos is not None else None
        ),
    }
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def _byte_level(
    model: MetadataSource, fields: Mapping[str, Any], vocabulary: _Vocabulary
) -> tuple[dict[str, Any], bool]:
    """Return the parts of a byte-level tokenizer, and whether it begins texts with BOS by default."""
    name = fields.get("pre")
    if name is None or name == "default":
        notice(f"{model.path}: tokenizer.ggml.pre is missing; words are split as GPT-2 does")
        name = "gpt-2"
    splitting: PreTokenizer | None = PRE_TOKENIZERS.get(name)
    if splitting is None:
        raise InputError(
            f"{model.path}: the word splitting {name!r} (tokenizer.ggml.pre) is not known; known are "
            f"{', '.join(PRE_TOKENIZERS)}; convert the original repository instead"
        )
    if vocabulary.merges is None:
        raise InputError(f"{model.path}: tokenizer.ggml.merges is missing; fetch a newer file of this model")
    parts = {
        "normalizer": {"type": "NFC"} if splitting.composed else None,
        "pre_tokenizer": splitting.to_json(),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": _bpe(vocabulary.tokens, [merge.split(" ", 1) for merge in vocabulary.merges])
        | {"ignore_merges": splitting.whole_words},
    }
    return parts, splitting.adds_bos


def _sentencepiece(
    model: MetadataSource, fields: Mapping[str, Any], vocabulary: _Vocabulary
) -> dict[str, Any]:
    """Return the parts of a SentencePiece tokenizer, as BPE with bytes for unknown characters."""
    gemma = model.metadata.get("general.architecture") in _GEMMA
    # Gemma's files have real spaces in tokens of spaces alone, where its tokenizer has signs for them.
    tokens = [
        SPACE * len(token) if gemma and token and not token.strip(" ") else token
        for token in vocabulary.tokens
    ]
    if vocabulary.merges is not None:
        merges: Sequence[Sequence[str]] = [merge.split(" ", 1) for merge in vocabulary.merges]
    else:
        # Of Gemma's tokens, the sequence and not the score decides.
        scores = -np.arange(len(tokens)) if gemma or vocabulary.scores is None else vocabulary.scores
        merges = derived_merges(tokens, vocabulary.kinds, scores)
    prefix = bool(fields.get("add_space_prefix", True))
    to_sign = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    begins = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    splitting = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    unknown = fields.get("unknown_token_id", 0)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begins, to_sign]} if prefix else to_sign,
        "pre_tokenizer": splitting if gemma else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(tokens, merges)
        | {"unk_token": tokens[int(unknown)], "fuse_unk": True, "byte_fallback": True},
    }


def derived_merges(tokens: Sequence[str], kinds: np.ndarray, scores: np.ndarray) -> list[tuple[str, str]]:
    """Return the merges that a SentencePiece vocabulary of BPE implies, the best first.

    Source: `generate_merges` of transformers, which also makes the published files.

    Args:
        tokens: texts by id.
        kinds: kind of each token. Control tokens, bytes and unused ones are never made of pieces.
        scores: score of each token; the higher, the earlier.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    made = np.isin(kinds, (NORMAL, USER_DEFINED))
    found: list[tuple[float, int, int, str, str]] = []
    for number, token in enumerate(tokens):
        if not made[number]:
            continue
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        score = float(scores[number])
        found += [(score, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda each: each[:3], reverse=True)
    return [each[3:] for each in found]


def _bpe(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": merges,
    }


def _added_tokens(fields: Mapping[str, Any], vocabulary: _Vocabulary) -> list[dict[str, Any]]:
    named = {fields.get(f"{name}_token_id") for name in _NAMES.values()}
    added = []
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        special = kind in (CONTROL, UNKNOWN) or number in named
        # A token of spaces alone is a word of SentencePiece, whose text has signs for spaces.
        if not special and (kind != USER_DEFINED or not token.strip(" ")):
            continue
        added.append(
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
        )
    return added


def _post_processor(tokens: Sequence[str], bos: int | None) -> dict[str, Any] | None:
    if bos is None:
        return None
    begin = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }


def _write_templates(model: MetadataSource, folder: Path) -> list[str]:
    """Write the chat templates, as transformers 5 reads them; return their texts."""
    prefix = "tokenizer.chat_template"
    texts = []
    for name, text in model.metadata.items():
        if not name.startswith(prefix) or not isinstance(text, str):
            continue
        texts.append(text)
        other = name.removeprefix(prefix).removeprefix(".")
        if other and not re.fullmatch(r"\w+", other):
            notice(f"{model.path}: the chat template {other!r} is left out: its name is no file name")
            continue
        path = Path("additional_chat_templates", f"{other}.jinja") if other else Path("chat_template.jinja")
        write_bytes(folder / path, text.encode())
    return texts


def _turn_ends(templates: Sequence[str], vocabulary: _Vocabulary, fields: Mapping[str, Any]) -> list[int]:
    """Return the ids of the tokens that end a turn of a chat."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    named = [fields.get("eot_token_id"), fields.get("eom_token_id")]
    named += [ids.get(text) for text in _TURN_ENDS if any(text in template for template in templates)]
    return [int(number) for number in named if number is not None and number < len(vocabulary.tokens)]


def _write_generation(
    model: MetadataSource,
    folder: Path,
    fields: Mapping[str, Any],
    special: Mapping[str, int],
    ends: Sequence[int],
) -> None:
    settings: dict[str, Any] = {
        f"{name}_token_id": int(special[name]) for name in ("bos", "pad") if name in special
    }
    every = list(dict.fromkeys([*([int(special["eos"])] if "eos" in special else []), *ends]))
    if every:
        settings["eos_token_id"] = every[0] if len(every) == 1 else every
    sampling = {
        ours: model.metadata[f"general.sampling.{theirs}"]
        for theirs, ours in _SAMPLING.items()
        if f"general.sampling.{theirs}" in model.metadata
    }
    write_json(
        folder / "generation_config.json", settings | ({"do_sample": True} | sampling if sampling else {})
    )
