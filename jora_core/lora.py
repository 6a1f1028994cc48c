"""Low-rank adapters over a frozen base: y = x Wᵀ + scale · (dropout(x) Aᵀ) Bᵀ, scale = alpha / r.

Shapes are PEFT's (A [R, in], B [out, R]), stacked over layers, so a saved folder is read by ``peft`` and
one of ``peft``'s is read here. LoRA: Hu et al. 2021, arXiv:2106.09685. The update is always ``(x Aᵀ) Bᵀ``;
``B A`` is formed only to merge.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jora_core.config import ModelConfig, read_json_object
from jora_core.errors import InputError
from jora_core.model import Params
from jora_core.spec import LORA_TARGETS, LoraSpec
from jora_core.storage import TensorStore, write_json, write_tensors
from jora_core.weights import lora_tensor_name, projection_shape


@flax.struct.dataclass
class LoraWeights:
    """One target's adapter, stacked over layers: a [L, R, in], b [L, out, R]."""

    a: jax.Array
    b: jax.Array


@flax.struct.dataclass
class Adapter:
    """Adapter weights of all layers: target name to A and B; `scale` and `dropout` are static."""

    weights: dict[str, LoraWeights]
    scale: float = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)


def init_adapter(config: ModelConfig, spec: LoraSpec, key: jax.Array, dtype: Any = jnp.float32) -> Adapter:
    """A new adapter that changes nothing yet: A uniform in ±1/√in (PEFT's Kaiming with a=√5), B zero."""
    weights = {}
    for target in spec.target_modules:
        out_width, in_width = projection_shape(config, target)
        bound = 1 / math.sqrt(in_width)
        # The key depends on the name alone, so a target keeps its start when another is added.
        target_key = jax.random.fold_in(key, zlib.crc32(target.encode()))
        a = jax.random.uniform(target_key, (config.num_layers, spec.r, in_width), dtype, -bound, bound)
        weights[target] = LoraWeights(a=a, b=jnp.zeros((config.num_layers, out_width, spec.r), dtype))
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout)


def merge_adapter(params: Params, adapter: Adapter) -> Params:
    """Base weights with the adapter added: W + scale · B A in float32, then cast to W's type."""
    changed = {}
    for target, lora in adapter.weights.items():
        weight = getattr(params.layers, target)
        update = jnp.einsum("lor,lri->loi", lora.b.astype(jnp.float32), lora.a.astype(jnp.float32))
        changed[target] = (weight.astype(jnp.float32) + adapter.scale * update).astype(weight.dtype)
    layers = dataclasses.replace(params.layers, **changed)
    return dataclasses.replace(params, layers=layers)


def save_adapter(adapter: Adapter, folder: Path | str, spec: LoraSpec, base_name: str) -> None:
    """Write a PEFT folder: ``adapter_model.safetensors`` and ``adapter_config.json``, each atomically.

    Args:
        spec: written into the config; its alpha / r must be the adapter's scale.
        base_name: name or path of the base model, for ``base_model_name_or_path``.
    """
    folder = Path(folder)
    tensors = {}
    for target, lora in adapter.weights.items():
        a, b = jax.device_get((lora.a, lora.b))
        for layer in range(a.shape[0]):
            tensors[lora_tensor_name(layer, target, "A")] = a[layer]
            tensors[lora_tensor_name(layer, target, "B")] = b[layer]
    write_tensors(folder / "adapter_model.safetensors", tensors)
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": spec.r,
            "lora_alpha": spec.lora_alpha,
            "lora_dropout": spec.lora_dropout,
            "target_modules": sorted(adapter.weights),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
        },
    )


def load_adapter(
    folder: Path | str, config: ModelConfig, dtype: Any = jnp.float32
) -> tuple[Adapter, LoraSpec]:
    """Read a PEFT LoRA folder made for a model of this shape.

    Raises:
        InputError: missing files, another PEFT method, an option this core would compute differently,
            missing, unexpected or misshaped tensors, NaN.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"adapter folder {folder} does not exist; give a folder in PEFT layout")
    path = folder / "adapter_config.json"
    spec = _lora_spec(path, read_json_object(path, f"adapter folder {folder}"))
    source = TensorStore.of_file(folder / "adapter_model.safetensors")
    expected: dict[str, tuple[int, int]] = {}
    for target in spec.target_modules:
        out_width, in_width = projection_shape(config, target)
        for layer in range(config.num_layers):
            expected[lora_tensor_name(layer, target, "A")] = (spec.r, in_width)
            expected[lora_tensor_name(layer, target, "B")] = (out_width, spec.r)
    source.check(expected)
    weights = {}
    for target in spec.target_modules:
        layers = range(config.num_layers)
        a = jnp.stack([jnp.asarray(source.read(lora_tensor_name(i, target, "A")), dtype) for i in layers])
        b = jnp.stack([jnp.asarray(source.read(lora_tensor_name(i, target, "B")), dtype) for i in layers])
        weights[target] = LoraWeights(a=a, b=b)
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout), spec


def _lora_spec(path: Path, data: dict[str, Any]) -> LoraSpec:
    """The LoRA settings of an ``adapter_config.json``; what would mean another computation is refused."""
    if data.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {data.get('peft_type')} is not supported; expected LORA")
    neutral = {"bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False}
    for name, value in neutral.items():
        if data.get(name, value) != value:
            raise InputError(f"{path}: {name}={data[name]!r} is not supported; expected {value!r}")
    for name in ("modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern"):
        if data.get(name):
            raise InputError(f"{path}: {name} is not supported; expected it to be empty")
    targets = data.get("target_modules")
    if not isinstance(targets, list) or not targets or set(targets) - set(LORA_TARGETS):
        raise InputError(
            f"{path}: target_modules {targets!r} is not supported; expected some of {', '.join(LORA_TARGETS)}"
        )
    try:
        return LoraSpec(
            r=data.get("r", 8),
            lora_alpha=data.get("lora_alpha", 8),
            lora_dropout=data.get("lora_dropout", 0.0),
            target_modules=[name for name in LORA_TARGETS if name in targets],  # type: ignore[misc]
        )
    except ValueError as err:
        raise InputError(f"{path}: {err}".replace("\n", " ")) from None
