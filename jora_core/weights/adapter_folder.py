"""Reading and writing of adapters in PEFT's folder layout.

Shapes are PEFT's (A [R, in], B [out, R], DoRA's magnitude [out]), here stacked over layers. So ``peft`` reads
a folder written here, and this module reads a folder of ``peft``. `jora_core.parameters.lora_math` has the
arithmetic.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections, projection_shape
from jora_core.architecture.tensor_names import lora_tensor_name
from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.parallel.placements import adapter_shardings
from jora_core.parameters.initialize import other_scales
from jora_core.parameters.trees import Adapter, LoraWeights
from jora_core.specs.adapter_targets import Ranks, layer_ranks, resolve_targets
from jora_core.specs.lora import LoraSpec
from jora_core.weights.peft_config import CONFIG_FILE, read_peft_config, write_peft_config
from jora_core.weights.tensor_store import TensorStore, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
# Names that peft writes for models of other classes, and with the adapter's own name left in.
_TENSOR_NAME = re.compile(
    r"(?:(?:base_model|model|language_model)\.)*layers\.(?P<layer>\d+)\.(?P<module>\w+\.\w+)\."
    r"(?:lora_(?P<part>[AB])(?:\.\w+)?\.weight|lora_magnitude_vector(?:\.\w+)?)"
)


def save_adapter(adapter: Adapter, folder: Path | str, spec: LoraSpec, base_name: str) -> None:
    """Write a PEFT folder: ``adapter_model.safetensors`` and ``adapter_config.json``, each atomically.

    Args:
        adapter: the weights, stacked over layers.
        folder: folder to write, made if missing.
        spec: settings written to the config; must have the adapter's ranks and scales.
        base_name: name or path of the base model, for ``base_model_name_or_path``.
    """
    folder = Path(folder)
    tensors = {}
    for target, lora in adapter.weights.items():
        ranks = layer_ranks(spec, [target], len(lora.a))[target]
        for part, stacked in _parts(lora).items():
            # One transfer for all layers of a stack; a transfer a layer would wait for the device each time.
            for layer, value in enumerate(jax.device_get(stacked)):
                if rank := ranks[layer][0]:
                    # What is beyond the rank of a layer is zero.
                    value = value[:rank] if part == "A" else value[:, :rank] if part == "B" else value
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
    source = _open_weights(folder, config)
    targets = resolve_targets(spec.target_modules, config)
    ranks = layer_ranks(spec, targets, config.num_layers)
    _check_fits(source, folder, config, spec, ranks)
    weights = {}
    # Layers are stacked as they are read: an adapter is small, so it needs no slices of the file.
    for target in targets:
        parts: dict[str, list[Any]] = {}
        widest = max(rank for rank, _ in ranks[target])
        for layer, (rank, _) in enumerate(ranks[target]):
            for part, shape in _shapes(config, spec, target, widest).items():
                if rank == 0:
                    parts.setdefault(part, []).append(jnp.zeros(shape, dtype))
                    continue
                value = source.read(lora_tensor_name(layer, target, part)).astype(np.float32)
                # Zeros fill the rows of A and the columns of B that the layer does not have.
                if part != "magnitude" and rank != widest:
                    missing = [(0, widest - rank), (0, 0)]
                    value = np.pad(value, missing if part == "A" else missing[::-1])
                parts.setdefault(part, []).append(jnp.asarray(value, dtype))
        stacked = {part: jnp.stack(values) for part, values in parts.items()}
        weights[target] = LoraWeights(a=stacked["A"], b=stacked["B"], magnitude=stacked.get("magnitude"))
    scales = other_scales(ranks, spec.scale)
    return Adapter(weights=weights, scale=spec.scale, dropout=spec.lora_dropout, scales=scales), spec


def _open_weights(folder: Path, config: ModelConfig) -> TensorStore:
    """Open the tensors of an adapter under the names that this core expects.

    Raises:
        InputError: the file is missing or cannot be read, or has two tensors of one meaning.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists() and (pickled := folder / "adapter_model.bin").exists():
        raise InputError(
            f"{folder} has no {WEIGHTS_FILE}, but {pickled.name}, a pickle file; load it with peft and save "
            "it with save_pretrained, which writes safetensors"
        )
    source = TensorStore.of_file(path)
    projections = {module: name for name, module in model_projections(config).items()}
    names: dict[str, str] = {}
    for name in source.names():
        found = _TENSOR_NAME.fullmatch(name)
        if found is None or found["module"] not in projections:
            continue
        part = found["part"] or "magnitude"
        # A layer number of many digits is no layer; it stays, and is named as unexpected.
        if len(found["layer"]) < 6:
            names[name] = lora_tensor_name(int(found["layer"]), projections[found["module"]], part)
    for ours in names.values():
        twice = [name for name, other in names.items() if other == ours]
        if len(twice) > 1:
            raise InputError(f"{path}: tensors {twice[0]} and {twice[1]} are of one module; remove one")
    return source.renamed(names)


def _parts(lora: LoraWeights) -> dict[str, jax.Array]:
    parts = {"A": lora.a, "B": lora.b}
    return parts if lora.magnitude is None else parts | {"magnitude": lora.magnitude}


def _shapes(config: ModelConfig, spec: LoraSpec, target: str, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each part of one layer's adapter."""
    out_width, in_width = projection_shape(config, target)
    shapes: dict[str, tuple[int, ...]] = {"A": (rank, in_width), "B": (out_width, rank)}
    return shapes | ({"magnitude": (out_width,)} if spec.use_dora else {})


def _check_fits(
    source: TensorStore,
    folder: Path,
    config: ModelConfig,
    spec: LoraSpec,
    ranks: Ranks,
) -> None:
    """Compare the tensors of an adapter with its config and with the base, and name the one that differs.

    This check comes before the plain comparison of names and shapes, whose message would be less clear.

    Args:
        source: the tensors, under the names that this core expects.
        folder: the PEFT folder.
        config: the base model's.
        spec: the adapter's settings.
        ranks: rank and scale of each layer, by target.

    Raises:
        InputError: naming the tensor.
    """
    path, names = folder / WEIGHTS_FILE, set(source.names())
    another_base = "the adapter was made for another base model"
    expected: dict[str, tuple[int, ...]] = {}
    for target, each in ranks.items():
        for part in _shapes(config, spec, target, spec.r):
            # One layer more than the model has: an adapter of a deeper base is recognized by it.
            of_layer = [lora_tensor_name(layer, target, part) for layer in range(config.num_layers + 1)]
            for name, (wanted, _) in zip(of_layer[:-1], each, strict=True):
                if wanted == 0:
                    continue
                shape = expected[name] = _shapes(config, spec, target, wanted)[part]
                if name not in names:
                    continue
                found = source.shape(name)
                # The rank is A's first axis and B's second; a magnitude has none.
                rank = {"A": found[:1], "B": found[1:]}.get(part, ())
                # Compared before the whole shape: a wrong r in the config is no sign of another base model.
                if len(rank) == 1 and rank != (wanted,):
                    raise InputError(
                        f"{path}: tensor {name} has shape {found}, of rank {rank[0]}, but {CONFIG_FILE} says "
                        f"r={wanted}; write the rank that the adapter was trained with"
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
    missing, extra = sorted(expected.keys() - names), sorted(names - expected.keys())
    if missing and extra:
        raise InputError(
            f"{path}: tensor {missing[0]} is missing; the file has {extra[0]} instead. {CONFIG_FILE} or the "
            "names are of another model"
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
