"""Low-rank adapters over a frozen base: made, merged, and kept in PEFT's layout.

Shapes are PEFT's (A [R, in], B [out, R], DoRA's magnitude [out]), stacked over layers, so a saved folder is
read by ``peft`` and one of ``peft``'s is read here. The arithmetic of one layer is in `jora_core.linear`.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jora_core.config import ModelConfig
from jora_core.errors import InputError
from jora_core.linear import merged_weight, row_norms
from jora_core.model import Params
from jora_core.peft_config import CONFIG_FILE, read_peft_config, write_peft_config
from jora_core.quant import dense
from jora_core.spec import LoraSpec
from jora_core.storage import TensorStore, write_json, write_tensors
from jora_core.targets import resolve_targets
from jora_core.weights import lora_tensor_name, projection_shape

WEIGHTS_FILE = "adapter_model.safetensors"


@flax.struct.dataclass
class LoraWeights:
    """One target's adapter, stacked over layers: a [L, R, in], b [L, out, R]; DoRA's magnitude [L, out]."""

    a: jax.Array
    b: jax.Array
    magnitude: jax.Array | None = None


@flax.struct.dataclass
class Adapter:
    """Adapter weights of all layers: target name to its matrices; `scale` and `dropout` are static."""

    weights: dict[str, LoraWeights]
    scale: float = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)


def init_adapter(
    config: ModelConfig,
    spec: LoraSpec,
    key: jax.Array,
    dtype: Any = jnp.float32,
    params: Params | None = None,
) -> Adapter:
    """A new adapter that changes nothing yet: A uniform in ±1/√in (PEFT's Kaiming with a=√5), B zero.

    Args:
        params: the base weights, whose row norms are DoRA's first magnitudes; not looked at otherwise.

    Raises:
        InputError: `spec.target_modules` does not fit this model.
        ValueError: DoRA without `params`.
    """
    if spec.use_dora and params is None:
        raise ValueError("a new DoRA adapter starts from the base's row norms: give params")
    weights = {}
    for target in _targets(config, spec):
        out_width, in_width = projection_shape(config, target)
        bound = 1 / math.sqrt(in_width)
        # The key depends on the name alone, so a target keeps its start when another is added.
        target_key = jax.random.fold_in(key, zlib.crc32(target.encode()))
        a = jax.random.uniform(target_key, (config.num_layers, spec.r, in_width), dtype, -bound, bound)
        magnitude = None
        if spec.use_dora and params is not None:
            magnitude = jax.lax.map(lambda w: row_norms(dense(w)), getattr(params.layers, target)).astype(
                dtype
            )
        b = jnp.zeros((config.num_layers, out_width, spec.r), dtype)
        weights[target] = LoraWeights(a=a, b=b, magnitude=magnitude)
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout)


def merge_adapter(params: Params, adapter: Adapter) -> Params:
    """Base weights with one adapter merged in; see `merge_adapters`."""
    return merge_adapters(params, [adapter])


def merge_adapters(params: Params, adapters: Sequence[Adapter]) -> Params:
    """Base weights with adapters merged in order, in float32 and cast once to each weight's type.

    Each adapter stands over what those before it made, with its own alpha / r; a layer at a time is held in
    float32. The head is left alone: tied stays tied.
    """

    changed = {}
    for target in sorted({name for adapter in adapters for name in adapter.weights}):
        used = [adapter for adapter in adapters if target in adapter.weights]
        pairs = tuple(adapter.weights[target] for adapter in used)
        scales = tuple(adapter.scale for adapter in used)
        changed[target] = _merge_stacked(getattr(params.layers, target), pairs, scales)
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **changed))


@partial(jax.jit, static_argnums=2)
def _merge_stacked(weight: jax.Array, pairs: tuple[LoraWeights, ...], scales: tuple[float, ...]) -> jax.Array:
    """`merged_weight` of every layer of one target, one at a time."""

    def one_layer(layer: tuple[jax.Array, tuple[LoraWeights, ...]]) -> jax.Array:
        return merged_weight(layer[0], zip(layer[1], scales, strict=True)).astype(weight.dtype)

    return jax.lax.map(one_layer, (weight, pairs))


def save_adapter(adapter: Adapter, folder: Path | str, spec: LoraSpec, base_name: str) -> None:
    """Write a PEFT folder: ``adapter_model.safetensors`` and ``adapter_config.json``, each atomically.

    Args:
        spec: written into the config; its scale must be the adapter's.
        base_name: name or path of the base model, for ``base_model_name_or_path``.
    """
    folder = Path(folder)
    tensors = {}
    for target, lora in adapter.weights.items():
        for part, stacked in _parts(lora).items():
            for layer, value in enumerate(jax.device_get(stacked)):
                tensors[lora_tensor_name(layer, target, part)] = value
    write_tensors(folder / WEIGHTS_FILE, tensors)
    write_json(folder / CONFIG_FILE, write_peft_config(spec, list(adapter.weights), base_name))


def load_adapter(
    folder: Path | str, config: ModelConfig, dtype: Any = jnp.float32
) -> tuple[Adapter, LoraSpec]:
    """Read a PEFT LoRA folder made for a model of this shape.

    Returns:
        The adapter and its settings, with the targets as a list of projections.

    Raises:
        InputError: missing files, another PEFT method, an option this core would compute differently,
            missing, unexpected or misshaped tensors, another base model, NaN.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"adapter folder {folder} does not exist; give a folder in PEFT layout")
    spec = read_peft_config(folder, config.num_layers)
    source = TensorStore.of_file(folder / WEIGHTS_FILE)
    targets = _targets(config, spec)
    shapes = {target: _shapes(config, spec, target) for target in targets}
    _check_fits(source, folder, config, spec, shapes)
    weights = {}
    for target in targets:
        parts = {}
        for part in shapes[target]:
            names = [lora_tensor_name(layer, target, part) for layer in range(config.num_layers)]
            parts[part] = jnp.stack([jnp.asarray(source.read(name), dtype) for name in names])
        weights[target] = LoraWeights(a=parts["A"], b=parts["B"], magnitude=parts.get("magnitude"))
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout), spec


def _targets(config: ModelConfig, spec: LoraSpec) -> tuple[str, ...]:
    return resolve_targets(spec.target_modules, config.num_layers)


def _parts(lora: LoraWeights) -> dict[str, jax.Array]:
    parts = {"A": lora.a, "B": lora.b}
    return parts if lora.magnitude is None else parts | {"magnitude": lora.magnitude}


def _shapes(config: ModelConfig, spec: LoraSpec, target: str) -> dict[str, tuple[int, ...]]:
    """Shape of each part of one layer's adapter."""
    out_width, in_width = projection_shape(config, target)
    shapes: dict[str, tuple[int, ...]] = {"A": (spec.r, in_width), "B": (out_width, spec.r)}
    return shapes | ({"magnitude": (out_width,)} if spec.use_dora else {})


def _check_fits(
    source: TensorStore,
    folder: Path,
    config: ModelConfig,
    spec: LoraSpec,
    shapes: dict[str, dict[str, tuple[int, ...]]],
) -> None:
    """Compare a file of adapter tensors with its config and with the base, and say which of the two differs.

    Raises:
        InputError: naming the tensor.
    """
    path, names = folder / WEIGHTS_FILE, set(source.names())
    another_base = "the adapter was made for another base model"
    expected: dict[str, tuple[int, ...]] = {}
    for target, parts in shapes.items():
        for part, shape in parts.items():
            of_layer = [lora_tensor_name(layer, target, part) for layer in range(config.num_layers + 1)]
            expected |= dict.fromkeys(of_layer[:-1], shape)
            for name in filter(names.__contains__, of_layer[:-1]):
                found = source.shape(name)
                rank = {"A": found[:1], "B": found[1:]}.get(part, ())
                if len(rank) == 1 and rank != (spec.r,):
                    raise InputError(
                        f"{path}: tensor {name} has shape {found}, of rank {rank[0]}, but {CONFIG_FILE} says "
                        f"r={spec.r}; write the rank that the adapter was trained with"
                    )
                if found != shape:
                    raise InputError(
                        f"{path}: tensor {name} has shape {found}, this model's is {shape}; {another_base}"
                    )
            if of_layer[-1] in names:
                raise InputError(
                    f"{path}: tensor {of_layer[-1]} is for layer {config.num_layers}, the model's last is "
                    f"{config.num_layers - 1}; {another_base}"
                )
    source.check(expected)
