"""Cached generation against transformers' own, and against itself without batching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jora_core.config import ModelConfig
from jora_core.generate import generate
from jora_core.loading import load_params
from jora_core.lora import Adapter, save_adapter
from jora_core.model import Params
from jora_core.spec import LoraSpec

PROMPTS = [np.random.default_rng(n).integers(3, 300, n, dtype=np.int32) for n in (1, 5, 9, 30, 70)]
# Near-ties between random logits would make equality of two libraries a matter of rounding.
NEW = 12


@pytest.fixture(scope="module")
def base(tiny_weights: Path) -> tuple[ModelConfig, Params]:
    config = ModelConfig.from_hf(tiny_weights)
    return config, load_params(tiny_weights, config)


@pytest.fixture(scope="module")
def with_adapter(
    base: tuple[ModelConfig, Params],
    random_adapter: Callable[..., Adapter],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Adapter, Path]:
    spec = LoraSpec.model_validate({"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]})
    adapter = random_adapter(base[0], spec)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(adapter, folder, spec, "base")
    return adapter, folder


@pytest.fixture(scope="module")
def expected(tiny_weights: Path, with_adapter: tuple[Adapter, Path]) -> list[list[int]]:
    """Greedy continuations by transformers and peft, one prompt at a time, without an end token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_weights), str(with_adapter[1])
    ).eval()
    answers = []
    for prompt in PROMPTS:
        ids = torch.from_numpy(prompt).long()[None]
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def test_same_tokens_as_transformers(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    seen: list[int] = []
    got = generate(
        params, config, PROMPTS, eos_ids=(), max_new_tokens=NEW, adapter=with_adapter[0], on_rows=seen.append
    )
    assert [answer.tolist() for answer in got] == expected
    assert sum(seen) == len(PROMPTS)
    # A budget of one row a batch: padding and neighbours change nothing.
    alone = generate(
        params, config, PROMPTS, eos_ids=(), max_new_tokens=NEW, tokens_per_batch=1, adapter=with_adapter[0]
    )
    assert [answer.tolist() for answer in alone] == expected


def test_end_tokens_end_an_answer(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    ends = {expected[1][0], expected[2][4]}
    got = generate(params, config, PROMPTS, eos_ids=tuple(ends), max_new_tokens=NEW, adapter=with_adapter[0])
    for answer, full in zip(got, expected, strict=True):
        stop = next((i for i, token in enumerate(full) if token in ends), NEW)
        assert answer.tolist() == full[:stop]


def test_one_token_and_no_prompts(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    got = generate(params, config, PROMPTS[:2], eos_ids=(), max_new_tokens=1, adapter=with_adapter[0])
    assert [answer.tolist() for answer in got] == [full[:1] for full in expected[:2]]
    assert generate(params, config, [], eos_ids=(), max_new_tokens=4) == []
