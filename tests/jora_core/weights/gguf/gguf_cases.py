"""Tiny models of every family as folders with a tokenizer, for tests of GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.jora_core.family_cases import CASES, make_model

ROWS = 320  # of the embedding; the tokenizer has fewer tokens
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
TEXTS = [
    "the cat sat on the mat, 12 times",
    "Grüße aus Köln: 3.14 €",
    "मैं घर जा रहा हूँ",
    "你好世界 42",
    "a  b\n\n c\t",
]
# What GGUF can say: an attention scale that follows from the heads, a head that is the embedding.
_CHANGES: dict[str, dict[str, Any]] = {
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 24, "tie_word_embeddings": True},
    "gemma3": {"query_pre_attn_scalar": 24},
}
# The first ones differ most; the others are slow tests.
QUICK_CASES = ("llama-3", "qwen3", "gemma3", "phi3-long")
OTHER_CASES = ("llama", "llama-longrope", "llama-biases", "mistral", "mistral-no-window", "qwen2", "gemma")
OTHER_CASES += ("gemma2", "olmo2", "phi3")


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level tokenizer that splits words as GPT-2 does, with BOS before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def make_folder(folder: Path, case: str, dtype: str = "float32", **changes: Any) -> Any:
    """A model folder of a case with tokenizer, chat template and generation settings; returns the model."""
    import torch

    fields = CASES[case] | {"vocab_size": ROWS} | _CHANGES.get(case, {}) | changes
    model = make_model(folder, fields).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    return model
