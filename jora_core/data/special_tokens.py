"""The special tokens of a model folder: BOS, EOS, and all tokens that no text may become.

BOS follows `transformers` 5: the tokens that the post-processor of ``tokenizer.json`` puts before a text, and
nothing else. A ``bos_token`` that a file only names starts no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.base.notices import notice

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Looked for where no file names the EOS token.
_USUAL_ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")
# `transformers` takes these where tokenizer_config.json names a class and no token.
_ENDS_OF_CLASSES = {"Llama": "</s>", "CodeLlama": "</s>", "Gemma": "<eos>", "Qwen2": "<|endoftext|>"}
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"


@dataclass(frozen=True)
class SpecialTokens:
    """BOS (None for models without) and EOS by id, the ids of all control tokens by their text, and texts by
    the name of their role (`bos_token`, `eos_token`, ...), which chat templates use.
    """

    bos_id: int | None
    eos_id: int
    controls: Mapping[str, int]
    names: Mapping[str, str]


def read_special_tokens(folder: Path, tokenizer: Tokenizer, vocab_size: int | None = None) -> SpecialTokens:
    """Find the special tokens of a model folder.

    Args:
        folder: the model folder.
        tokenizer: its tokenizer.
        vocab_size: rows of the model's embedding; None if unknown.

    Raises:
        InputError: no EOS token, an id beyond the embedding, or more than one token before a text.
    """
    files = [(name, _read(folder / name)) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)]
    texts = _added_texts(folder, files[0][1])

    def id_of(text: str) -> int | None:
        found = tokenizer.token_to_id(text)
        return texts.get(text) if found is None else int(found)

    bos_id = _bos_id(folder, tokenizer, files[0][1])
    eos_id, source = _eos_id(folder, tokenizer, files, id_of)
    for where, token in ((f"{folder / 'tokenizer.json'}: post_processor", bos_id), (source, eos_id)):
        if token is not None:
            check_token_id(where, token, vocab_size)
    added = tokenizer.get_added_tokens_decoder()
    controls = {token.content: number for number, token in added.items() if token.special}
    names: dict[str, str] = {}
    for _, fields in files:
        for name in _NAMES:
            text = _text(fields.get(name))
            number = None if text is None else id_of(text)
            # A text is a control token only where the tokenizer may find it: in its vocabulary.
            if text and number is not None:
                controls[text] = number
                names.setdefault(name, text)
    for name, number in (("bos_token", bos_id), ("eos_token", eos_id)):
        text = None if number is None else tokenizer.id_to_token(number)
        if text and number is not None:
            controls[text] = number
            names.setdefault(name, text)
    return SpecialTokens(bos_id, eos_id, controls, names)


def check_token_id(where: str, token: object, vocab_size: int | None) -> int:
    """Return the id of a special token.

    Args:
        where: file and field, for the error message.
        token: the value of the field.
        vocab_size: rows of the model's embedding; None if unknown.

    Raises:
        InputError: no integer, or an id without a row in the embedding.
    """
    if isinstance(token, bool) or not isinstance(token, int):
        raise InputError(f"{where} must be int, found {str(token)[:40]!r}")
    if token < 0 or (vocab_size is not None and token >= vocab_size):
        rows = "any embedding's" if vocab_size is None else f"the embedding's {vocab_size}"
        raise InputError(
            f"{where} is {token}, which is not one of {rows} rows; correct the id, or use the tokenizer "
            "that belongs to the model"
        )
    return token


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, f"model folder {path.parent}") if path.is_file() else {}


def _added_texts(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Return the added tokens that stand beside ``tokenizer.json`` only, by text."""
    texts: dict[str, int] = {}
    for number, token in _object(settings.get("added_tokens_decoder")).items():
        text = _text(token)
        if text is not None and number.isdecimal() and len(number) < 10:
            texts[text] = int(number)
    for text, number in _read(folder / "added_tokens.json").items():
        if isinstance(number, int) and not isinstance(number, bool):
            texts.setdefault(text, number)
    return texts


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(token: object) -> str | None:
    """Return the text of a token field: either text, or an object such as {"content": "<s>"}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _bos_id(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> int | None:
    prefix = _ids_before(tokenizer)
    if len(prefix) > 1:
        raise InputError(
            f"{folder}: the tokenizer puts {len(prefix)} tokens before a text; at most one is supported"
        )
    adds = settings.get("add_bos_token")
    if isinstance(adds, bool) and adds != bool(prefix):
        begins = f"starts texts with {tokenizer.id_to_token(prefix[0])}" if prefix else "adds no BOS token"
        notice(
            f"{folder / TOKENIZER_CONFIG}: add_bos_token={str(adds).lower()} has no effect, as in "
            f"transformers 5; the tokenizer itself {begins}"
        )
    return prefix[0] if prefix else None


def _ids_before(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the special tokens that a tokenizer puts before a text."""
    if tokenizer.post_processor is None:
        return []
    # "a" is no text for every tokenizer: a word-level one may know whole words alone.
    words = ["a", *filter(None, (tokenizer.id_to_token(number) for number in range(64)))]
    for word in words:
        try:
            encoding = tokenizer.encode(word, add_special_tokens=True)
        except Exception:  # the library raises bare Exception for a text without tokens
            continue
        if 0 in encoding.special_tokens_mask:
            return encoding.ids[: encoding.special_tokens_mask.index(0)]
    return []


def _eos_id(folder: Path, tokenizer: Tokenizer, files: list[tuple[str, dict[str, Any]]], id_of: Any) -> tuple:
    """Return the id of the EOS token, and the file and field that name it."""
    missing = None
    for name, fields in files:
        text = _text(fields.get("eos_token"))
        if text is None:
            continue
        if (found := id_of(text)) is not None:
            return found, f"{folder / name}: eos_token"
        missing = missing or f"{folder / name}: eos_token {text!r} is no token of the tokenizer"
    config = _read(folder / "config.json")
    for path, fields in (
        (folder / "config.json", config),
        # Models of images and text: the decoder's fields are nested.
        (folder / "config.json", _object(config.get("text_config"))),
        (folder / "generation_config.json", _read(folder / "generation_config.json")),
    ):
        found = fields.get("eos_token_id")
        if isinstance(found, list):  # Llama 3 lists several ends; the first is the one to train on
            found = found[0] if found else None
        if found is not None:
            if missing:
                notice(f"{missing}; eos_token_id={found} of {path.name} is used")
            return check_token_id(f"{path}: eos_token_id", found, None), f"{path}: eos_token_id"
    if missing:
        raise InputError(f"{missing}; correct it, or set eos_token_id in config.json")
    class_name = str(files[0][1].get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")
    usual = _ENDS_OF_CLASSES.get(class_name)
    for text in (usual, *_USUAL_ENDS):
        if text is not None and (found := id_of(text)) is not None:
            where = f"{folder / TOKENIZER_CONFIG}: eos_token"
            if text != usual:
                notice(f"{where} is missing; {text} is taken, because models usually end texts with it")
            return found, where
    raise InputError(f"{folder}: the tokenizer has no EOS token; name eos_token in {TOKENIZER_CONFIG}")
