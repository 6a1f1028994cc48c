"""Cached generation against transformers' own, against itself without batching; draws, limits and memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.generate import GREEDY, NEW_STEP, Writer, _begin, _go_on, generate
from jora_core.generation.kv_cache import cache_bytes
from jora_core.generation.prompt_rows import read_prompts
from jora_core.generation.sampling import settings_of
from jora_core.parallel.mesh import make_mesh
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.answers import SamplingSpec
from jora_core.specs.lora import LoraSpec
from jora_core.weights.adapter_folder import save_adapter
from jora_core.weights.load_params import load_params

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


def test_prompts_of_one_context_are_read_together(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path]
) -> None:
    """The same answers from fewer rows, whatever the budget lets stand together."""
    config, params = base
    rng = np.random.default_rng(0)
    shared = [rng.integers(3, 300, size, dtype=np.int32) for size in (90, 40)]
    contexts = [str(number % 2) for number in range(9)]
    prompts = [
        np.concatenate([shared[number % 2], rng.integers(3, 300, 3 + number, dtype=np.int32)])
        for number in range(9)
    ]
    options: dict[str, Any] = {"eos_ids": (), "max_new_tokens": NEW, "adapter": with_adapter[0]}
    expected = [answer.tolist() for answer in generate(params, config, prompts, **options)]
    assert len({tuple(answer) for answer in expected}) > 6
    for budget in (8192, 500, 1):
        got = generate(params, config, prompts, contexts=contexts, tokens_per_batch=budget, **options)
        assert [answer.tolist() for answer in got] == expected
    together = read_prompts(prompts, contexts, 128, 12, 1)
    assert together.tokens.shape == (3, 128), "two rows would do; twelve are halved twice"
    found = np.asarray(together.tokens).reshape(-1)[np.asarray(together.path)]
    for row, prompt in zip(found, prompts, strict=False):
        np.testing.assert_array_equal(row[: len(prompt)], prompt)
    assert np.asarray(together.until).astype(bool).sum() == 90 + 40 + sum(3 + number for number in range(9))
    assert read_prompts(prompts, [""] * 9, 128, 12, 1).tokens.shape == (12, 128)
    apart = [str(number) for number in range(9)]
    assert read_prompts(prompts, apart, 128, 12, 1).tokens.shape == (12, 128), "cuDNN takes no packed rows"


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


def test_no_end_token_before_the_shortest_answer(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    end = expected[1][3]
    options: dict[str, Any] = {"eos_ids": (end,), "max_new_tokens": NEW, "adapter": with_adapter[0]}
    free, *_ = generate(params, config, PROMPTS[1:2], **options)
    assert free.tolist() == expected[1][: expected[1].index(end)]
    held, *_ = generate(params, config, PROMPTS[1:2], min_new_tokens=NEW - 2, **options)
    assert len(held) >= NEW - 2 and end not in held
    assert held[: len(free)].tolist() == free.tolist()


def test_an_answer_ends_where_it_has_been_watched_enough(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    heard: dict[int, list[int]] = {place: [] for place in range(len(PROMPTS))}

    def watch(place: int, tokens: np.ndarray) -> bool:
        assert len(tokens)
        heard[place] += tokens.tolist()
        return place % 2 == 0 and len(heard[place]) >= 6

    got = generate(
        params,
        config,
        PROMPTS,
        eos_ids=(expected[1][8],),
        max_new_tokens=NEW,
        adapter=with_adapter[0],
        watch=watch,
        chunk=3,
    )
    for place, (answer, full) in enumerate(zip(got, expected, strict=True)):
        end = full.index(expected[1][8]) if expected[1][8] in full else NEW
        # The prompts' reading gives one token, then three at a time: seven are the first six or more.
        assert answer.tolist() == heard[place] == full[: min(end, 7 if place % 2 == 0 else NEW)]


def test_draws_do_not_depend_on_neighbours(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    sampling = SamplingSpec(temperature=1.0, top_p=0.9, seed=11)
    options: dict[str, Any] = {"eos_ids": (), "max_new_tokens": NEW, "sampling": sampling}
    numbers = [7, 8, 9, 10, 11]
    together = [answer.tolist() for answer in generate(params, config, PROMPTS, numbers=numbers, **options)]
    backwards = generate(params, config, PROMPTS[::-1], numbers=numbers[::-1], tokens_per_batch=1, **options)
    assert [answer.tolist() for answer in backwards[::-1]] == together
    twice = generate(params, config, [PROMPTS[2]] * 2, numbers=[9, 10], **options)
    assert twice[0].tolist() == together[2] != twice[1].tolist()
    assert [answer.tolist() for answer in generate(params, config, PROMPTS, **options)] != together


def compiled(function: Any) -> int:
    """How many programs a jitted function has been compiled to."""
    return function._cache_size()


def test_other_values_compile_nothing_new(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    before: list[int] | None = None
    for most, temperature, chunk in ((9, 0.7, 16), (20, 1.3, 1), (NEW_STEP, 0.2, 5)):
        sampling = SamplingSpec(temperature=temperature, top_k=most, seed=most)
        options: dict[str, Any] = {"max_new_tokens": most, "min_new_tokens": most // 2, "chunk": chunk}
        generate(
            params, config, PROMPTS[:2], eos_ids=(5,), sampling=sampling, watch=lambda *_: False, **options
        )
        programs = [compiled(function) for function in (_begin, _go_on)]
        assert before is None or programs == before
        before = programs


def test_the_cache_is_written_in_place(base: tuple[ModelConfig, Params]) -> None:
    """Of one chunk's program: the cache is its argument and its result in one, and is not copied."""
    config, params = base
    writer = Writer(
        params, None, config, jnp.zeros(0, jnp.int32), settings_of(GREEDY), "greedy", make_mesh(), 0, 512
    )
    rows, slots = 4, 512 + 64
    order = writer.order(np.ones(rows, np.int32), np.zeros(rows, np.uint32))
    static = (config, "greedy", make_mesh())
    state, cache = jax.eval_shape(
        partial(_begin, config=config, method="greedy", mesh=make_mesh(), spare=512, attention="auto"),
        params, None, read_prompts(PROMPTS[:1] * rows, [""] * rows, 64, rows, 1), order,
    )  # fmt: skip
    size = cache_bytes(config, rows * slots, 4)
    assert sum(part.size * 4 for part in cache) == size
    lowered = _go_on.lower(params, None, state, cache, np.zeros(rows, bool), order, 16, *static)
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size
