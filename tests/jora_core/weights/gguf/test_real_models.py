"""The real models of `jora fetch` against transformers. They are taken from the cache, or fetched once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flows.commands.models.fetch import fetch_model
from flows.configuration.fetched_models import MODELS
from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.model.decoder import forward, unembed
from jora_core.weights.gguf.write_gguf import write_gguf
from jora_core.weights.load_params import load_params
from jora_core.weights.model_folder import read_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Texts of many scripts, and control tokens inside of them.
PIECES = [
    "The quick brown fox, it's 12 o'clock!",
    "नमस्ते दुनिया",
    "你好，世界！2024年",
    "مرحبا بالعالم",
    "สวัสดีชาวโลก",
    "Привет, мир 42",
    "émigré naïve café",
    "🙂🎉👩‍👩‍👧",
    "def f(x):\n    return x**2\n",
    "<|im_start|>user\nhi<|im_end|>",
    "<bos>hello<eos>",
    "<start_of_turn>user<end_of_turn>",
    "</s> <unk> <0x0A> ▁▁",
    "\n\n\t tabs\u200b",
]
# Twenty prompts of each model.
PROMPTS_OF_A_LENGTH = {5: 4, 20: 4, 60: 3, 250: 3, 1000: 3, 2000: 3}
LENGTHS = list(PROMPTS_OF_A_LENGTH)


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Path:
    """The folder of a fetched model."""
    try:
        return fetch_model(request.param)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    """The same GGUF file as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=MODELS[model.parent.name].file, dtype=torch.float32
    ).eval()


def _texts(count: int, words: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(PIECES, k=draw.randint(1, words))) for _ in range(count)]


def test_token_ids(model: Path) -> None:
    """2,000 texts: the folder as transformers reads it, and the file as transformers converts it."""
    from transformers import AutoTokenizer

    own = load_tokenizer(model)
    folder = AutoTokenizer.from_pretrained(model)
    file = AutoTokenizer.from_pretrained(model.parent, gguf_file=MODELS[model.parent.name].file)
    # The converter of transformers leaves out the splitting of digits that SmolLM's files name.
    file.backend_tokenizer.pre_tokenizer = folder.backend_tokenizer.pre_tokenizer
    for text in _texts(2000, 8):
        ids = folder(text).input_ids
        assert file(text).input_ids == ids, text
        # Control tokens in a text are text here, so they are compared apart.
        plain = folder(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert own.encode(text).tolist() == plain, text


def test_the_same_greedy_tokens_after_a_second_file(model: Path, theirs: Any, tmp_path: Path) -> None:
    """The folder as a GGUF file again, which transformers loads: 100 tokens on four prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    config = read_model(model)
    write_gguf(model, config, tmp_path / "again.gguf", "f32", "again")
    again: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="again.gguf", dtype=torch.float32
    ).eval()
    tokenizer = load_tokenizer(model)
    for text in PIECES[:4]:
        ids = torch.from_numpy(tokenizer.encode(text)[None]).long()
        first, second = (
            each.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=100,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0].tolist()
            for each in (theirs, again)
        )
        assert first == second, text


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_and_greedy_tokens(model: Path, theirs: Any, length: int) -> None:
    """Logits in float32 within 2e-5 of the largest, and 100 equal greedy tokens, up to 2,000 tokens."""
    import torch

    config = read_model(model)
    params = load_params(model, config)
    tokenizer = load_tokenizer(model)
    stream = np.concatenate([tokenizer.encode(text) for text in _texts(60, 40)])
    draw = random.Random(length)
    begins = [draw.randrange(len(stream) - length) for _ in range(PROMPTS_OF_A_LENGTH[length])]
    prompts = [stream[begin : begin + length].astype(np.int32) for begin in begins]
    slots = jnp.arange(length)
    for prompt in prompts:
        ids = torch.from_numpy(prompt[None]).long()
        with torch.no_grad():
            expected = theirs(ids).logits[0].numpy()
            made = theirs.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=100,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        hidden = forward(params, config, prompt[None], slots[None], jnp.full((1, length), length))
        found = np.asarray(unembed(params, config, hidden[0]))
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
        (answer,) = generate(params, config, [prompt], GenerationSettings(eos_ids=(), max_new_tokens=100))
        assert answer.tolist() == made[0, length:].tolist()
