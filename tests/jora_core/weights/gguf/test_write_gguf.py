"""Model folders of every family as GGUF files and back, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.data.tokenizer import load_tokenizer
from jora_core.weights.gguf.convert_gguf import convert_gguf
from jora_core.weights.gguf.write_gguf import write_gguf
from tests.jora_core.family_cases import their_logits
from tests.jora_core.weights.gguf.gguf_cases import GGUF_CASES, ROWS, TEMPLATE, TEXTS, make_folder

TOKENS = np.random.default_rng(0).integers(0, ROWS, (2, 40), dtype=np.int32)
# Of the logits' mean size. Q8_0 rounds to 1/254 of the largest of 32 weights, and the errors add up.
BOUNDS = {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2, "q8_0": 8e-2}


def reload(folder: Path) -> object:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("case", GGUF_CASES)
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
