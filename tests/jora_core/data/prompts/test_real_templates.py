"""The chat template of SmolLM2-135M-Instruct: the ids of `transformers`, on texts of many kinds."""

from __future__ import annotations

import random

import pytest

from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.prompts.settings import PromptSpec
from retrieval.corpus.remote_sources import cache_folder

PIECES = ["lamp", " ", "\n", "\n\n", "日本", "é", "123", "#4 Bob", "'s", "\t", "  ", "🙂", "ب", "x = [1, 2]"]


@pytest.mark.slow
def test_ids_of_smollm2_are_those_of_transformers() -> None:
    from transformers import AutoTokenizer

    folder = cache_folder().parent / "models" / "smollm2-135m" / "hf"
    if not folder.is_dir():
        pytest.skip("SmolLM2-135M-Instruct is not in the cache; `jora fetch smollm2-135m` gets it")
    tokenizer = load_tokenizer(folder)
    template = load_template(PromptSpec(), tokenizer)
    assert tokenizer.text_of(template.end_id) == "<|im_end|>" and not len(template.bos)
    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 40))).strip() or "a"
        messages = [{"role": "user", "content": f"Do it.\n\n{text}"}]
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert tokenizer.encode(template.prompt("Do it.", text)).tolist() == wanted
