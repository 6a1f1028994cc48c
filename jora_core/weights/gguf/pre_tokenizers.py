"""How byte-level vocabularies split a text into words, by the names that llama.cpp gives to it.

A GGUF file names the splitting (`tokenizer.ggml.pre`), a ``tokenizer.json`` spells it. The table has the
names that files of the supported architectures use.
Sources: `llama-vocab.cpp` of llama.cpp; the published ``tokenizer.json`` of each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One way of splitting.

    Attributes:
        names: its names in GGUF files; the first one is written.
        regex: pattern whose matches are the words; None for GPT-2's, which the library has.
        digits: whether each digit is a word of its own, before the pattern.
        whole_words: whether a word that is in the vocabulary is one token, whatever the merges.
        adds_bos: whether texts begin with BOS where the file does not say it.
        composed: whether texts are brought into Unicode's form NFC.
    """

    names: tuple[str, ...]
    regex: str | None = None
    digits: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    composed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the field pre_tokenizer of a ``tokenizer.json``."""
        level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": self.regex is None,
        }
        if self.digits:
            first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        elif self.regex is not None:
            first = {
                "type": "Split",
                "pattern": {"Regex": self.regex},
                "behavior": "Isolated",
                "invert": False,
            }
        else:
            return level
        return {"type": "Sequence", "pretokenizers": [first, level]}


_TABLE = (
    PreTokenizer(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), digits=True
    ),
    PreTokenizer(
        (
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ),
        _LLAMA3,
        whole_words=True,
        adds_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe"), _LLAMA3),
    PreTokenizer(("qwen2", "megrez", "kormo", "f2llmv2"), _QWEN2, composed=True),
    PreTokenizer(("deepseek-r1-qwen",), _QWEN2),
    PreTokenizer(("tekken",), _TEKKEN, whole_words=True, adds_bos=True),
    PreTokenizer(("gpt-4o", "llama4", "kanana2"), _GPT4O),
)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: row for row in _TABLE for name in row.names}
)


def find_pre_tokenizer(tokenizer: Mapping[str, Any]) -> PreTokenizer | None:
    """Return the way of splitting of a ``tokenizer.json``, None for one that llama.cpp does not know.

    Args:
        tokenizer: the fields of the file.
    """
    found = _simplified(tokenizer.get("pre_tokenizer"))
    composed = _is_composed(tokenizer.get("normalizer"))
    whole_words = bool(tokenizer["model"].get("ignore_merges", False))
    same = [row for row in _TABLE if _simplified(row.to_json()) == found]
    exact = [row for row in same if (row.composed, row.whole_words) == (composed, whole_words)]
    # A table row that differs in one of the two would give other tokens for some texts, but where merges make
    # each token of the vocabulary anyway, whole words change nothing.
    near = [row for row in same if row.composed == composed]
    return next(iter(exact or near), None)


def _simplified(value: Any) -> Any:
    """Return a pre-tokenizer without the settings that change no token."""
    if not isinstance(value, dict):
        return value
    if value.get("type") == "Sequence":
        inner = [_simplified(each) for each in value.get("pretokenizers", [])]
        return inner[0] if len(inner) == 1 else inner
    return {
        name: _simplified(each)
        for name, each in value.items()
        # Offsets are not used, and "invert" is off where it is missing.
        if name not in ("trim_offsets", "invert") or (name == "invert" and each)
    }


def _is_composed(normalizer: Any) -> bool:
    return isinstance(normalizer, dict) and normalizer.get("type") == "NFC"
