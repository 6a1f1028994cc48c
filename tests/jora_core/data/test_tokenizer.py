"""BOS and EOS as each family's tokenizer files ask for them, held against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer, open_tokenizer, read_merges

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|endoftext|>", "<|im_end|>", "<s>", "</s>"]
IDS = {token: i for i, token in enumerate(SPECIAL)}
BYTE_LEVEL = processors.ByteLevel(trim_offsets=False)


def template(start: str) -> Any:
    special = [(token, IDS[token]) for token in start.split() if token in IDS]
    return processors.TemplateProcessing(single=f"{start} $A", pair=f"{start} $A $B", special_tokens=special)


def write(folder: Path, processor: Any = None, config: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A byte-level tokenizer whose first tokens are the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(SPECIAL + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if processor is not None:
        tokenizer.post_processor = processor
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def first_id_of_transformers(folder: Path) -> int | None:
    """The special token that transformers puts before a text."""
    from transformers import PreTrainedTokenizerFast

    ids = PreTrainedTokenizerFast.from_pretrained(folder)("a")["input_ids"]
    return ids[0] if len(ids) > 1 else None


LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
QWEN = {"eos_token": "<|im_end|>"}
QWEN_CONFIG = {"bos_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"]}


@pytest.mark.parametrize(
    ("processor", "settings", "config", "bos", "eos"),
    [
        (template("<bos>"), {**GEMMA, "add_bos_token": True}, {}, "<bos>", "<eos>"),
        (template("<bos>"), GEMMA, {}, "<bos>", "<eos>"),
        (processors.Sequence([BYTE_LEVEL, template("<s>")]), LLAMA, {}, "<s>", "</s>"),
        # Qwen's config.json names a BOS token that no text starts with.
        (BYTE_LEVEL, {**QWEN, "bos_token": None, "add_bos_token": False}, QWEN_CONFIG, None, "<|im_end|>"),
        (BYTE_LEVEL, {**QWEN, "bos_token": None}, QWEN_CONFIG, None, "<|im_end|>"),
        (BYTE_LEVEL, QWEN, QWEN_CONFIG, None, "<|im_end|>"),
        (BYTE_LEVEL, {**QWEN, "bos_token": "<|endoftext|>"}, QWEN_CONFIG, None, "<|im_end|>"),
        (None, {**QWEN, "bos_token": None}, QWEN_CONFIG, None, "<|im_end|>"),
    ],
    ids=["gemma", "gemma-template", "llama-3", "qwen", "qwen-null", "qwen-absent", "qwen-named", "qwen-bare"],
)
def test_bos_as_transformers_adds_it(
    tmp_path: Path, processor: Any, settings: Any, config: Any, bos: str | None, eos: str
) -> None:
    folder = write(tmp_path, processor, config, **settings)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_id == (None if bos is None else IDS[bos])
    assert tokenizer.bos_id == first_id_of_transformers(folder)
    assert tokenizer.eos_id == IDS[eos]
    assert tokenizer.decode(tokenizer.encode("a lamp").tolist()) == "a lamp"
    assert not set(tokenizer.encode("a lamp").tolist()) & set(IDS.values())


def test_the_tokenizer_outweighs_add_bos_token(tmp_path: Path) -> None:
    folder = write(tmp_path, template("<bos>"), **GEMMA, add_bos_token=False)
    assert load_tokenizer(folder).bos_id == first_id_of_transformers(folder) == IDS["<bos>"]
    asked = write(tmp_path, BYTE_LEVEL, **GEMMA, add_bos_token=True)
    assert load_tokenizer(asked).bos_id is first_id_of_transformers(asked) is None


def test_a_token_that_a_file_only_names_starts_no_text(tmp_path: Path) -> None:
    folder = write(tmp_path, **GEMMA)
    assert load_tokenizer(folder).bos_id is first_id_of_transformers(folder) is None
    named_by_config = write(tmp_path, config={"bos_token_id": 5, "eos_token_id": [6, 4]})
    tokenizer = load_tokenizer(named_by_config)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 6)
    nowhere = load_tokenizer(write(tmp_path))
    assert (nowhere.bos_id, nowhere.eos_id) == (None, IDS["</s>"])


def test_refused_tokenizers(tmp_path: Path) -> None:
    folder = write(tmp_path, template("<s> <bos>"), **GEMMA)
    with pytest.raises(InputError, match="puts 2 tokens before a text"):
        load_tokenizer(folder)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate("ab")}, []))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="no EOS token"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(folder)


@pytest.mark.parametrize("form", ["pairs", "texts", "indented"])
def test_without_merges_and_merges_in_parts(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ids, texts and merges as from the whole file, also where tokens look like its syntax."""
    whole = json.loads((Path("data") / "tiny-llama" / "tokenizer.json").read_text())
    vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
    # A text with a space cannot stand in the older form of a merge.
    spaced = () if form == "texts" else ('x"merges": [["',)
    for text in (*spaced, '"merges":[', "[", "]", '\\"', "],"):
        for piece in (text, f"{text}a"):
            vocabulary.setdefault(piece, len(vocabulary))
        merges.append([text, "a"])
    if form == "texts":
        whole["model"]["merges"] = [" ".join(pair) for pair in merges]
    folder = tmp_path / "folder"
    shutil.copytree(Path("data") / "tiny-llama", folder)
    raw = json.dumps(whole, ensure_ascii=form == "texts", indent=2 if form == "indented" else None)
    (folder / "tokenizer.json").write_text(raw)
    monkeypatch.setattr("jora_core.data.tokenizer._CHUNK", 7)
    full, light = open_tokenizer(folder), open_tokenizer(folder, merges=False)
    assert list(read_merges(folder)) == [tuple(pair) for pair in merges]
    assert light.get_vocab() == full.get_vocab()
    ours, theirs = load_tokenizer(folder, encodes=False), load_tokenizer(folder)
    assert (ours.bos_id, ours.eos_id, ours.controls, ours.names, ours.digest) == (
        theirs.bos_id,
        theirs.eos_id,
        theirs.controls,
        theirs.names,
        theirs.digest,
    )
    assert ours.decode(theirs.encode("a text")) == theirs.decode(theirs.encode("a text"))
    with pytest.raises(RuntimeError, match="without its merges, so it encodes no text"):
        ours.encode("a text")
