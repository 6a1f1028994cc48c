"""Reading and writing of adapters in PEFT's folder layout.

Shapes are PEFT's (A [R, in], B [out, R], DoRA's magnitude [out]), here stacked over layers. So ``peft`` reads
a folder written here, and this module reads a folder of ``peft``. `jora_core.parameters.lora_math` has the
arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import projection_shape
from jora_core.architecture.tensor_names import lora_tensor_name
from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.parallel.placements import adapter_shardings
from jora_core.parameters.trees import Adapter, LoraWeights
from jora_core.specs.adapter_targets import resolve_targets
from jora_core.specs.lora import LoraSpec
from jora_core.weights.peft_config import CONFIG_FILE, read_peft_config, write_peft_config
from jora_core.weights.tensor_store import TensorStore, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(adapter: Adapter, folder: Path | str, spec: LoraSpec, base_name: str) -> None:
    """Write a PEFT folder: ``adapter_model.safetensors`` and ``adapter_config.json``, each atomically.

    Args:
        adapter: the weights, stacked over layers.
        folder: folder to write, made if missing.
        spec: settings written to the config; must have the adapter's scale.
        base_name: name or path of the base model, for ``base_model_name_or_path``.
    """
    folder = Path(folder)
    tensors = {}
    for target, lora in adapter.weights.items():
        for part, stacked in _parts(lora).items():
            # One transfer for all layers of a stack; a transfer a layer would wait for the device each time.
            for layer, value in enumerate(jax.device_get(stacked)):
                tensors[lora_tensor_name(layer, target, part)] = value
    write_tensors(folder / WEIGHTS_FILE, tensors)
    # After the weights: readers open the config first, and it must not promise tensors that are not there.
    write_json(folder / CONFIG_FILE, write_peft_config(spec, list(adapter.weights), base_name))


def load_adapter(
    folder: Path | str, config: ModelConfig, dtype: Any = jnp.float32
) -> tuple[Adapter, LoraSpec]:
    """Read an adapter from a PEFT folder and check that it fits the base model.

    Args:
        folder: folder with ``adapter_model.safetensors`` and ``adapter_config.json``.
        config: the base model's.
        dtype: type of the adapter's arrays, independent of the type in the file.

    Returns:
        The adapter and its settings, with the targets as a list of projections.

    Raises:
        InputError: missing files, another PEFT method, an option this core would compute differently,
            missing, unexpected or misshaped tensors, another base model, NaN.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"adapter folder {folder} does not exist; give a folder in PEFT layout")
    spec = read_peft_config(folder, config)
    # The config is checked first: its errors are clearer than those about names and shapes.
    source = TensorStore.of_file(folder / WEIGHTS_FILE)
    targets = resolve_targets(spec.target_modules, config)
    shapes = {target: _shapes(config, spec, target) for target in targets}
    _check_fits(source, folder, config, spec, shapes)
    weights = {}
    # Layers are stacked as they are read: an adapter is small, so it needs no slices of the file.
    for target in targets:
        parts = {}
        for part in shapes[target]:
            names = [lora_tensor_name(layer, target, part) for layer in range(config.num_layers)]
            parts[part] = jnp.stack([jnp.asarray(source.read(name), dtype) for name in names])
        weights[target] = LoraWeights(a=parts["A"], b=parts["B"], magnitude=parts.get("magnitude"))
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout), spec


def _parts(lora: LoraWeights) -> dict[str, jax.Array]:
    parts = {"A": lora.a, "B": lora.b}
    return parts if lora.magnitude is None else parts | {"magnitude": lora.magnitude}


def _shapes(config: ModelConfig, spec: LoraSpec, target: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each part of one layer's adapter."""
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
    """Compare the tensors of an adapter with its config and with the base, and name the one that differs.

    This check comes before the plain comparison of names and shapes, whose message would be less clear.

    Raises:
        InputError: naming the tensor.
    """
    path, names = folder / WEIGHTS_FILE, set(source.names())
    another_base = "the adapter was made for another base model"
    expected: dict[str, tuple[int, ...]] = {}
    for target, parts in shapes.items():
        for part, shape in parts.items():
            # One layer more than the model has: an adapter of a deeper base is recognized by it.
            of_layer = [lora_tensor_name(layer, target, part) for layer in range(config.num_layers + 1)]
            expected |= dict.fromkeys(of_layer[:-1], shape)
            for name in filter(names.__contains__, of_layer[:-1]):
                found = source.shape(name)
                # The rank is A's first axis and B's second; a magnitude has none.
                rank = {"A": found[:1], "B": found[1:]}.get(part, ())
                # Compared before the whole shape: a wrong r in the config is no sign of another base model.
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
    # Last: missing and unexpected tensors, and tensors that hold no floats.
    source.check(expected)


def read_adapter(folder: Path | None, config: ModelConfig, mesh: Mesh) -> Adapter | None:
    """Read an adapter from a PEFT folder and place it on the mesh; return None for no folder.

    Args:
        folder: folder in PEFT's layout, or None for the base model alone.
        config: the base model's.
        mesh: data × tensor.
    """
    if folder is None:
        return None
    adapter, _ = load_adapter(folder, config)
    return jax.device_put(adapter, adapter_shardings(config, adapter, mesh))
