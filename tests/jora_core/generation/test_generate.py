"""Cached generation against transformers' own, against itself without batching; draws, limits and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.generate import (
    NEW_TOKENS_STEP,
    ChunkEnd,
    DecodeProgram,
    GenerationSettings,
    Model,
    decode_chunk,
    decode_inputs,
    generate,
    prefill_prompts,
)
from jora_core.generation.prompt_rows import lay_out_prompts
from jora_core.parallel.mesh import make_mesh
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.answers import SamplingSpec
from jora_core.specs.lora import LoraSpec
from jora_core.weights.adapter_folder import save_adapter
from jora_core.weights.load_params import load_params

PROMPTS = [np.random.default_rng(n).integers(3, 300, n, dtype=np.int32) for n in (1, 5, 9, 30, 70)]
# Near-ties between random logits would make equality of two libraries a matter of rounding.
NEW = 12


def settings(**changes: Any) -> GenerationSettings:
    return GenerationSettings(**{"eos_ids": (), "max_new_tokens": NEW} | changes)


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
    seen: dict[int, list[int]] = {}

    def take(places: Sequence[int], answers: Sequence[np.ndarray]) -> None:
        seen.update(zip(places, (answer.tolist() for answer in answers), strict=True))

    got = generate(params, config, PROMPTS, settings(), adapter=with_adapter[0], on_answers=take)
    assert [answer.tolist() for answer in got] == expected
    assert [seen[place] for place in range(len(PROMPTS))] == expected
    # A budget of one row a batch: padding and neighbours change nothing.
    alone = generate(params, config, PROMPTS, settings(tokens_per_batch=1), adapter=with_adapter[0])
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
    adapter = with_adapter[0]
    expected = [answer.tolist() for answer in generate(params, config, prompts, settings(), adapter=adapter)]
    assert len({tuple(answer) for answer in expected}) > 6
    for budget in (8192, 500, 1):
        in_budget = settings(tokens_per_batch=budget)
        got = generate(params, config, prompts, in_budget, contexts=contexts, adapter=adapter)
        assert [answer.tolist() for answer in got] == expected
    together = lay_out_prompts(prompts, contexts, 128, 12, 1)
    assert together.tokens.shape == (3, 128), "two rows would do; twelve are halved twice"
    found = np.asarray(together.tokens).reshape(-1)[np.asarray(together.path)]
    for row, prompt in zip(found, prompts, strict=False):
        np.testing.assert_array_equal(row[: len(prompt)], prompt)
    assert np.asarray(together.until).astype(bool).sum() == 90 + 40 + sum(3 + number for number in range(9))
    assert lay_out_prompts(prompts, [""] * 9, 128, 12, 1).tokens.shape == (12, 128)
    apart = [str(number) for number in range(9)]
    assert lay_out_prompts(prompts, apart, 128, 12, 1).tokens.shape == (12, 128), "cuDNN takes no packed rows"


def test_end_tokens_end_an_answer(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    ends = {expected[1][0], expected[2][4]}
    got = generate(params, config, PROMPTS, settings(eos_ids=tuple(ends)), adapter=with_adapter[0])
    for answer, full in zip(got, expected, strict=True):
        stop = next((i for i, token in enumerate(full) if token in ends), NEW)
        assert answer.tolist() == full[:stop]


def test_one_token_and_no_prompts(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    got = generate(params, config, PROMPTS[:2], settings(max_new_tokens=1), adapter=with_adapter[0])
    assert [answer.tolist() for answer in got] == [full[:1] for full in expected[:2]]
    assert generate(params, config, [], settings(max_new_tokens=4)) == []


def test_no_end_token_before_the_shortest_answer(
    base: tuple[ModelConfig, Params], with_adapter: tuple[Adapter, Path], expected: list[list[int]]
) -> None:
    config, params = base
    end = expected[1][3]
    prompt, adapter = PROMPTS[1:2], with_adapter[0]
    free, *_ = generate(params, config, prompt, settings(eos_ids=(end,)), adapter=adapter)
    assert free.tolist() == expected[1][: expected[1].index(end)]
    long = settings(eos_ids=(end,), min_new_tokens=NEW - 2)
    held, *_ = generate(params, config, prompt, long, adapter=adapter)
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
        settings(eos_ids=(expected[1][8],), chunk=3),
        adapter=with_adapter[0],
        watch=watch,
    )
    for place, (answer, full) in enumerate(zip(got, expected, strict=True)):
        end = full.index(expected[1][8]) if expected[1][8] in full else NEW
        # The prefill gives one token, then three come at a time: seven are the first six or more.
        assert answer.tolist() == heard[place] == full[: min(end, 7 if place % 2 == 0 else NEW)]


def test_draws_do_not_depend_on_neighbours(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    sampling = SamplingSpec(temperature=1.0, top_p=0.9, seed=11)
    drawn, alone = settings(sampling=sampling), settings(sampling=sampling, tokens_per_batch=1)
    numbers = [7, 8, 9, 10, 11]
    together = [answer.tolist() for answer in generate(params, config, PROMPTS, drawn, numbers=numbers)]
    backwards = generate(params, config, PROMPTS[::-1], alone, numbers=numbers[::-1])
    assert [answer.tolist() for answer in backwards[::-1]] == together
    twice = generate(params, config, [PROMPTS[2]] * 2, drawn, numbers=[9, 10])
    assert twice[0].tolist() == together[2] != twice[1].tolist()
    assert [answer.tolist() for answer in generate(params, config, PROMPTS, drawn)] != together


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that JAX lowers for its compiler meanwhile, as its monitoring reports them."""
    lowered: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            lowered.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lowered
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_other_values_compile_nothing_new(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    programs: list[int] = []
    for most, temperature, chunk in ((9, 0.7, 16), (20, 1.3, 1), (NEW_TOKENS_STEP, 0.2, 5)):
        sampling = SamplingSpec(temperature=temperature, top_k=most, seed=most)
        limits = {"eos_ids": (5,), "max_new_tokens": most, "min_new_tokens": most // 2, "chunk": chunk}
        with compilations() as lowered:
            generate(
                params,
                config,
                PROMPTS[:2],
                settings(sampling=sampling, **limits),
                watch=lambda *_: False,
            )
        programs.append(len(lowered))
    assert programs[0] > 0 and programs[1:] == [0, 0]


def test_the_cache_is_written_in_place(base: tuple[ModelConfig, Params]) -> None:
    """Of one chunk's program: the cache is its argument and its result in one, and is not copied."""
    config, params = base
    rows, new_slots = 4, 512
    slots = new_slots + 64
    long = settings(max_new_tokens=new_slots)
    inputs = decode_inputs(long, np.ones(rows, np.int32), np.zeros(rows, np.uint32))
    program = DecodeProgram(config, "greedy", make_mesh(), new_slots)
    model = Model(params, None)
    prompts = lay_out_prompts(PROMPTS[:1] * rows, [""] * rows, 64, rows, 1)
    state, cache = jax.eval_shape(partial(prefill_prompts, program=program), model, prompts, inputs)
    size = 2 * config.num_layers * rows * slots * config.num_kv_heads * config.head_dim * 4
    assert sum(part.size * 4 for part in cache) == size
    end = ChunkEnd(16, np.zeros(rows, bool))
    memory = decode_chunk.lower(model, state, cache, inputs, end, program).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size
