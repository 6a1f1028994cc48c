"""New adapters, merging, and training from an order; test_peft.py holds their numbers against peft's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.model.decoder import forward, unembed
from jora_core.parameters.initialize import init_adapter
from jora_core.parameters.lora_math import merge_adapter
from jora_core.parameters.quantization import dequantize, quantize_params
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.lora import LoraSpec
from jora_core.specs.train import TrainSpec
from jora_core.training.train import train
from jora_core.weights.adapter_folder import load_adapter
from jora_core.weights.load_params import load_params

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 12), dtype=np.int32)


@partial(jax.jit, static_argnums=1)
def compute(params: Params, config: ModelConfig, adapter: Adapter | None) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    until = jnp.full_like(positions, 12)
    hidden = forward(params, config, jnp.asarray(TOKENS), positions, until, adapter=adapter)
    return unembed(params, config, hidden)


def logits(params: Params, config: ModelConfig, adapter: Adapter | None) -> np.ndarray:
    return np.asarray(compute(params, config, adapter))


@pytest.fixture(scope="module")
def base(tiny_weights: Path) -> tuple[ModelConfig, Params]:
    config = ModelConfig.from_hf(tiny_weights)
    return config, load_params(tiny_weights, config)


def test_a_new_adapter_changes_nothing(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    adapter = init_adapter(config, LoraSpec.model_validate({}), jax.random.key(0))
    np.testing.assert_array_equal(logits(params, config, adapter), logits(params, config, None))
    a = adapter.weights["q_proj"].a
    bound = config.hidden_size**-0.5
    assert a.shape == (2, 16, 32)
    assert 0.9 * bound < float(jnp.abs(a).max()) <= bound


def test_a_target_starts_alike_whatever_stands_beside_it(base: tuple[ModelConfig, Params]) -> None:
    config, _ = base
    make = lambda *names: init_adapter(  # noqa: E731
        config, LoraSpec.model_validate({"target_modules": names}), jax.random.key(0)
    )
    one, two = make("v_proj"), make("q_proj", "v_proj")
    np.testing.assert_array_equal(one.weights["v_proj"].a, two.weights["v_proj"].a)


def test_merging_a_bfloat16_base_rounds_once(
    base: tuple[ModelConfig, Params], random_adapter: Callable[..., Adapter]
) -> None:
    config, params = base
    adapter = random_adapter(config, LoraSpec.model_validate({"r": 2, "target_modules": ["q_proj"]}))
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    lora = adapter.weights["q_proj"]
    update = adapter.scale * np.einsum("lor,lri->loi", lora.b, lora.a)
    expected = (np.asarray(narrow.layers.q_proj, np.float32) + update).astype(jnp.bfloat16)
    got = merge_adapter(narrow, adapter).layers.q_proj
    assert got.dtype == jnp.bfloat16
    assert (np.asarray(got) == expected).mean() > 0.99  # sums in another order may round the other way


def test_dora_starts_from_the_bases_row_norms(base: tuple[ModelConfig, Params]) -> None:
    config, params = base
    spec = LoraSpec.model_validate({"r": 2, "use_dora": True, "target_modules": "all-linear"})
    with pytest.raises(ValueError, match="give params"):
        init_adapter(config, spec, jax.random.key(0))
    adapter = init_adapter(config, spec, jax.random.key(0), params=params)
    for name, pair in adapter.weights.items():
        expected = np.linalg.norm(np.asarray(getattr(params.layers, name)), axis=-1)
        assert pair.magnitude is not None
        np.testing.assert_allclose(pair.magnitude, expected, rtol=1e-6)


def test_dora_over_a_quantised_base_starts_from_what_its_codes_stand_for(
    base: tuple[ModelConfig, Params],
) -> None:
    config, params = base
    spec = LoraSpec.model_validate({"r": 2, "use_dora": True})
    coarse = quantize_params(params, "nf4")
    pair = init_adapter(config, spec, jax.random.key(0), params=coarse).weights["v_proj"]
    expected = np.linalg.norm(np.asarray(dequantize(coarse.layers.v_proj, jnp.float32)), axis=-1)
    assert pair.magnitude is not None
    np.testing.assert_allclose(pair.magnitude, expected, rtol=1e-6)
    assert np.abs(expected - np.linalg.norm(np.asarray(params.layers.v_proj), axis=-1)).max() > 1e-4


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_scale(use_rslora: bool) -> None:
    spec = LoraSpec.model_validate({"r": 16, "lora_alpha": 8, "use_rslora": use_rslora})
    assert spec.scale == (2.0 if use_rslora else 0.5)


def test_a_pattern_trains_and_goes_on(
    tiny_weights: Path,
    alpaca_rows: Callable[..., list[dict[str, Any]]],
    write_rows: Callable[[Path, list[dict[str, Any]]], Path],
    train_order: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """DoRA on a pattern with dropout: the second run starts where the first one ended, and both learn."""
    records = write_rows(tmp_path / "records.parquet", alpaca_rows())
    lora = {"r": 2, "use_dora": True, "use_rslora": True, "target_modules": r".*\.(q|down)_proj"}
    first = train_order(tiny_weights, records, "first", lora=lora)
    train(TrainSpec.model_validate(first), verbose=False)
    config = ModelConfig.from_hf(tiny_weights)
    made, spec = load_adapter(first["output_dir"], config)
    assert (spec.target_modules, spec.use_dora, spec.use_rslora) == (["q_proj", "down_proj"], True, True)
    begun = init_adapter(config, spec, jax.random.key(0), params=load_params(tiny_weights, config))
    for name, pair in made.weights.items():
        moved = np.asarray(pair.magnitude) - np.asarray(begun.weights[name].magnitude)
        assert np.abs(moved).max() > 1e-3, "the magnitude is trained"
    second = train_order(tiny_weights, records, "second", lora=lora, adapter=first["output_dir"])
    result = train(TrainSpec.model_validate(second), verbose=False)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "second/out/metrics.jsonl").read_text().splitlines()
    ]
    before = [
        json.loads(line)["loss"] for line in (tmp_path / "first/out/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[0] < before[0] - 0.1 and result["final_loss"] < before[0]
    plain = lora | {"use_dora": False}
    with pytest.raises(InputError, match=r"has use_dora=True, the spec lora\.use_dora=False"):
        train(TrainSpec.model_validate(second | {"lora": plain, "output_dir": str(tmp_path / "x")}))
    other = lora | {"target_modules": "all-linear"}
    with pytest.raises(InputError, match="the adapter is on q_proj, down_proj, the spec's"):
        train(TrainSpec.model_validate(second | {"lora": other, "output_dir": str(tmp_path / "x")}))
