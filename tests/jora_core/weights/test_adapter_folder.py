"""Adapters against peft: logits both ways, new adapters, merged weights; tiny random models in float32."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from jora_core.architecture.tensor_names import lora_tensor_name
from jora_core.base.errors import InputError
from jora_core.parameters.initialize import init_adapter
from jora_core.parameters.lora_math import merge_adapters
from jora_core.weights.adapter_folder import load_adapter, save_adapter
from jora_core.weights.tensor_store import TensorStore, write_tensors
from tests.jora_core.peft_cases import (
    DEFAULT,
    KINDS,
    LLAMA_TARGETS,
    PATTERNS,
    assert_same_logits,
    busy_adapter,
    made_by_peft,
    ours,
    read_by_peft,
    spec_of,
    theirs,
)


@pytest.mark.parametrize("targets", [DEFAULT, list(LLAMA_TARGETS)], ids=["qv", "all"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_peft_reads_ours(bases: Any, tmp_path: Path, kind: str, targets: list[str]) -> None:
    base = bases("llama")
    spec = spec_of(target_modules=targets, **KINDS[kind])
    adapter = busy_adapter(base, spec)
    save_adapter(adapter, tmp_path, spec, "base")
    expected = theirs(read_by_peft(base, tmp_path))
    got = ours(base, adapter)
    assert np.abs(got - ours(base, None)).max() > 0.1
    assert_same_logits(got, expected)
    assert_same_logits(ours(base, None, merge_adapters(base.params, [adapter])), expected)
    again, read_spec = load_adapter(tmp_path, base.config)
    assert read_spec == spec
    assert jax.tree.structure(again) == jax.tree.structure(adapter)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, adapter))


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"target_modules": list(LLAMA_TARGETS)}, torch.float32),
        ({"use_rslora": True}, torch.float32),
        ({"use_dora": True, "target_modules": "all-linear"}, torch.float32),
        ({"target_modules": r"model\.layers\.\d+\..*\.(k|down)_proj"}, torch.float32),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj", "up_proj"]}, torch.float32),
        ({"task_type": "CAUSAL_LM", "lora_dropout": 0.3}, torch.bfloat16),
        ({"use_dora": True, "use_rslora": True}, torch.bfloat16),
        ({"target_modules": ["o_proj"]}, torch.float16),
        (PATTERNS, torch.float32),
        ({**PATTERNS, "use_dora": True, "use_rslora": True}, torch.float32),
    ],
    ids=[
        "lora",
        "all",
        "rslora",
        "dora-all-linear",
        "pattern",
        "exclude",
        "bf16",
        "rsdora-bf16",
        "fp16",
        "ranks",
        "rsdora-ranks",
    ],
)
def test_ours_reads_pefts(bases: Any, tmp_path: Path, settings: dict[str, Any], dtype: Any) -> None:
    base = bases("llama")
    model = made_by_peft(base, tmp_path, dtype, **settings)
    adapter, spec = load_adapter(tmp_path, base.config)
    assert spec.scale == pytest.approx(5 / (3**0.5 if settings.get("use_rslora") else 3))
    expected = theirs(model)
    assert np.abs(ours(base, None) - expected).max() > 0.1
    assert_same_logits(ours(base, adapter), expected)
    assert_same_logits(ours(base, None, merge_adapters(base.params, [adapter])), expected)


@pytest.mark.parametrize("case", ["lora", "rsdora"])
def test_an_adapter_with_patterns_is_saved_with_them(bases: Any, tmp_path: Path, case: str) -> None:
    base = bases("llama")
    expected = theirs(made_by_peft(base, tmp_path / "theirs", **PATTERNS, **KINDS[case]))
    adapter, spec = load_adapter(tmp_path / "theirs", base.config)
    assert (spec.r, spec.rank_pattern, spec.alpha_pattern) == (3, *PATTERNS.values())
    save_adapter(adapter, tmp_path / "ours", spec, "base")
    assert_same_logits(theirs(read_by_peft(base, tmp_path / "ours")), expected)
    again, first = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert again.keys() == first.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("base_model.model.layers", "weight"),
        ("base_model.model.model.language_model.layers", "weight"),
        ("base_model.model.language_model.model.layers", "default.weight"),
        ("model.layers", "default.weight"),
        ("layers", "weight"),
    ],
)
def test_other_names_of_the_same_tensors(bases: Any, tmp_path: Path, prefix: str, suffix: str) -> None:
    base, spec = bases("llama"), spec_of(use_dora=True)
    adapter = busy_adapter(base, spec)
    save_adapter(adapter, tmp_path, spec, "base")
    store = TensorStore.of_file(tmp_path / "adapter_model.safetensors")
    values = {name: store.read(name) for name in store.names()}
    other = {
        name.replace("base_model.model.model.layers", prefix).replace("weight", suffix): value
        for name, value in values.items()
    }
    assert other.keys().isdisjoint(values)
    write_tensors(tmp_path / "adapter_model.safetensors", other)
    found, _ = load_adapter(tmp_path, base.config)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, adapter))
    write_tensors(tmp_path / "adapter_model.safetensors", other | values)
    with pytest.raises(InputError, match=r"tensors .* and .* are of one module"):
        load_adapter(tmp_path, base.config)
    strange = {name.replace("self_attn", "attention"): value for name, value in values.items()}
    write_tensors(tmp_path / "adapter_model.safetensors", strange)
    with pytest.raises(InputError, match=r"is missing; the file has .*attention\.q_proj.* instead"):
        load_adapter(tmp_path, base.config)


def test_a_pefts_adapter_is_saved_again_without_loss(bases: Any, tmp_path: Path) -> None:
    base = bases("llama")
    expected = theirs(made_by_peft(base, tmp_path / "theirs", use_dora=True, target_modules="all-linear"))
    adapter, spec = load_adapter(tmp_path / "theirs", base.config)
    save_adapter(adapter, tmp_path / "ours", spec, "base")
    np.testing.assert_array_equal(theirs(read_by_peft(base, tmp_path / "ours")), expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_new_adapter_is_pefts_new_adapter(bases: Any, tmp_path: Path, kind: str) -> None:
    """B zero, A in the same range, DoRA's magnitude the same, and nothing changed yet."""
    from peft import LoraConfig, get_peft_model

    base = bases("llama")
    spec = spec_of(r=16, **KINDS[kind])
    adapter = init_adapter(base.config, spec, jax.random.key(0), params=base.params)
    np.testing.assert_allclose(ours(base, adapter), ours(base, None), atol=1e-5)
    settings = LoraConfig(r=16, lora_alpha=5, target_modules=DEFAULT, **KINDS[kind])
    model = get_peft_model(base.theirs(), settings)
    for target in DEFAULT:
        pair = adapter.weights[target]
        for layer in range(2):
            layer_theirs = {
                part: model.state_dict()[
                    lora_tensor_name(layer, target, part).replace(".weight", "") + suffix
                ]
                for part, suffix in [("A", ".default.weight"), ("B", ".default.weight")]
                + ([("magnitude", ".default.weight")] if spec.use_dora else [])
            }
            bound = float(layer_theirs["A"].abs().max())
            assert float(jnp.abs(pair.a[layer]).max()) == pytest.approx(bound, rel=0.02)
            assert not layer_theirs["B"].any() and not pair.b[layer].any()
            if spec.use_dora:
                assert pair.magnitude is not None
                np.testing.assert_allclose(pair.magnitude[layer], layer_theirs["magnitude"], rtol=1e-6)


def test_several_adapters_merge_in_order(bases: Any, tmp_path: Path) -> None:
    """Against peft's own way to do it: merge one, put the next on what came out, merge that."""
    from peft import PeftModel

    base = bases("llama")
    specs = [spec_of(use_dora=True), spec_of(r=2, lora_alpha=3, use_rslora=True), spec_of(use_dora=True, r=1)]
    adapters = [busy_adapter(base, spec, seed) for seed, spec in enumerate(specs)]
    model = base.theirs()
    for number, (adapter, spec) in enumerate(zip(adapters, specs, strict=True)):
        save_adapter(adapter, tmp_path / str(number), spec, "base")
        model = PeftModel.from_pretrained(model, str(tmp_path / str(number))).merge_and_unload()
    expected = theirs(model)
    assert_same_logits(ours(base, None, merge_adapters(base.params, adapters)), expected)
    backwards = ours(base, None, merge_adapters(base.params, adapters[::-1]))
    assert np.abs(backwards - expected).max() > 1e-3


def test_a_merge_is_rounded_once(bases: Any) -> None:
    """Two updates, each below half a step of bfloat16, that change the weight together."""
    base = bases("llama")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base.params)
    adapter = busy_adapter(base, spec_of(lora_alpha=1e-3))
    many = merge_adapters(narrow, [adapter] * 64).layers.q_proj
    assert many.dtype == jnp.bfloat16
    pair = adapter.weights["q_proj"]
    exact = narrow.layers.q_proj.astype(jnp.float32) + 64 * adapter.scale * pair.b @ pair.a
    np.testing.assert_array_equal(many, exact.astype(jnp.bfloat16))
    assert bool((many != narrow.layers.q_proj).any())


def test_our_config_file_is_pefts(bases: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    base = bases("llama")
    spec = spec_of(
        lora_alpha=12, use_rslora=True, use_dora=True, target_modules="all-linear", lora_dropout=0.1
    )
    save_adapter(busy_adapter(base, spec), tmp_path, spec, "some/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read = LoraConfig.from_pretrained(str(tmp_path))
    assert isinstance(read, LoraConfig)
    assert (read.r, read.lora_alpha, read.lora_dropout) == (3, 12, 0.1)
    assert (read.use_rslora, read.use_dora, read.base_model_name_or_path) == (True, True, "some/base")
    assert read.target_modules == set(LLAMA_TARGETS)
    assert type(json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"]) is int
