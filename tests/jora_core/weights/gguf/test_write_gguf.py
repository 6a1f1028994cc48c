"""Model folders of every family as GGUF files and back, against transformers."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer
from jora_core.weights.gguf.convert_gguf import convert_gguf
from jora_core.weights.gguf.gguf_file import GgufFile
from jora_core.weights.gguf.modelfile import write_modelfile
from jora_core.weights.gguf.write_config import write_config
from jora_core.weights.gguf.write_gguf import write_gguf
from jora_core.weights.gguf.write_tokenizer import tokenizer_fields
from tests.jora_core.family_cases import CASES, their_logits
from tests.jora_core.weights.gguf.gguf_cases import (
    OTHER_CASES,
    QUICK_CASES,
    ROWS,
    TEMPLATE,
    TEXTS,
    byte_level_tokenizer,
    make_folder,
)

TOKENS = np.random.default_rng(0).integers(0, ROWS, (2, 40), dtype=np.int32)
# Of the logits' mean size. Q8_0 rounds to 1/254 of the largest of 32 weights, and the errors add up.
BOUNDS = {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2, "q8_0": 8e-2}


CASES_ = [*QUICK_CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHER_CASES)]
# Families that the GGUF loader of transformers knows.
LOADED = ["llama", *(pytest.param(case, marks=pytest.mark.slow) for case in ("qwen2", "gemma2", "phi3"))]


def reload(folder: Path) -> object:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("case", CASES_)
def test_folder_to_gguf_and_back(case: str, tmp_path: Path) -> None:
    """Same tensors, tokenizer, template and end tokens, and logits within the bound of each type."""
    model = make_folder(tmp_path / "hf", case)
    config = ModelConfig.from_hf(tmp_path / "hf")
    expected = their_logits(model, TOKENS)
    for kind in ("f32", "q8_0"):
        write_gguf(tmp_path / "hf", config, tmp_path / f"{kind}.gguf", kind, "tiny")
        convert_gguf(tmp_path / f"{kind}.gguf", tmp_path / kind)
        found = their_logits(reload(tmp_path / kind), TOKENS)
        assert rms(found - expected) <= BOUNDS[kind] * rms(expected), kind
    ours, theirs = (load_tokenizer(tmp_path / name, ROWS) for name in ("f32", "hf"))
    assert [a.tolist() for a in ours.encode_batch(TEXTS)] == [a.tolist() for a in theirs.encode_batch(TEXTS)]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)
    assert (tmp_path / "f32" / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((tmp_path / "f32" / "generation_config.json").read_text())["eos_token_id"] == [2, 4]


@pytest.mark.parametrize("case", LOADED)
def test_transformers_loads_the_file(case: str, tmp_path: Path) -> None:
    """The weights as the GGUF loader of transformers reads them, in a model of the folder's config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model = make_folder(tmp_path / "hf", case)
    write_gguf(tmp_path / "hf", ModelConfig.from_hf(tmp_path / "hf"), tmp_path / "f32.gguf", "f32", "tiny")
    # Given, because the loader knows few fields: not the width of a head of Qwen2, nor Gemma's scale.
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="f32.gguf", config=config, dtype=torch.float32, attn_implementation="eager"
    )
    theirs, ours = loaded.state_dict(), model.state_dict()
    assert set(theirs) == set(ours)
    for name, value in ours.items():
        assert torch.allclose(theirs[name], value, atol=2e-7), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="f32.gguf")
    own = load_tokenizer(tmp_path / "hf", ROWS)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == own.encode(text).tolist()
    assert tokenizer.chat_template == TEMPLATE


def test_there_and_back_and_there_again(tmp_path: Path) -> None:
    """A GGUF file that was made of a converted one gives the greedy tokens of the first model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = make_folder(tmp_path / "hf", "llama")
    folder = tmp_path / "hf"
    for name in ("one", "two"):
        write_gguf(folder, ModelConfig.from_hf(folder), tmp_path / f"{name}.gguf", "f32", "tiny")
        folder = tmp_path / name
        convert_gguf(tmp_path / f"{name}.gguf", folder)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    again: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="two.gguf",
        config=AutoConfig.from_pretrained(tmp_path / "hf"),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for length in (3, 20):
        ids = torch.from_numpy(TOKENS[:1, :length]).long()
        mask = torch.ones_like(ids)
        expected, found = (
            each.generate(input_ids=ids, attention_mask=mask, **settings)[0].tolist()
            for each in (model, again)
        )
        assert len(set(expected[length:])) > 3 and found == expected


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama-dynamic-rope", {}, "rope type dynamic"),
        ("qwen2-windows", {}, "windows"),
        ("gemma2", {"query_pre_attn_scalar": 11}, "another query_pre_attn_scalar than 24"),
        ("gemma2", {"attn_logit_softcapping": None}, "that there is no soft-cap"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    case: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    given = {"query_pre_attn_scalar": 24} if "gemma" in case else {}
    config = ModelConfig.from_fields(CASES[case] | given | changes)
    with pytest.raises(InputError, match=message):
        write_config(config, "model")


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"llama\.cpp does not know this pre_tokenizer"):
        tokenizer_fields(Path("data/tiny-llama"), 3072)


def test_a_large_vocabulary_stays_small_in_memory(tmp_path: Path) -> None:
    """Fields of 50,000 tokens and 25,000 merges: less than 40 bytes each, where Python's texts take 60."""
    whole = json.loads(byte_level_tokenizer().to_str())
    vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
    for number in range(25_000):
        word = f"w{number:05}"
        for token in (word, f"{word}b"):
            vocabulary.setdefault(token, len(vocabulary))
        merges.append([word, "b"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer_fields(tmp_path, len(vocabulary))  # what is imported on the way is no part of it
    tracemalloc.start()
    fields = tokenizer_fields(tmp_path, len(vocabulary))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 40 * (len(vocabulary) + len(merges))
    assert [token.decode() for token in fields["tokens"]] == sorted(vocabulary, key=vocabulary.__getitem__)
    assert [merge.decode() for merge in fields["merges"]] == [f"{left} {right}" for left, right in merges]
    assert (fields["tokens"][-1], fields["tokens"][:2]) == (b"w24999b", list(fields["tokens"])[:2])


def test_lists_of_texts_can_be_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path / "hf", "llama-3")
    write_gguf(tmp_path / "hf", ModelConfig.from_hf(tmp_path / "hf"), tmp_path / "f32.gguf", "f32", "tiny")
    whole, light = (GgufFile(tmp_path / "f32.gguf", texts=texts) for texts in (True, False))
    assert len(whole.metadata["tokenizer.ggml.tokens"]) == ROWS and light.tensors == whole.tensors
    assert list(light.metadata) == list(whole.metadata)
    for name, value in whole.metadata.items():
        texts = isinstance(value, list)
        assert light.metadata[name] == [] if texts else np.array_equal(light.metadata[name], value), name


def test_the_modelfile_has_template_and_stop_words(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    write_modelfile(tmp_path, tmp_path / "Modelfile", "model-q8_0.gguf", "</s>", 4096)
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model-q8_0.gguf"
    assert "<|im_start|>assistant" in (tmp_path / "Modelfile").read_text()
    assert lines[-2:] == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"']
