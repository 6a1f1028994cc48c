"""Merging of adapters into a base model's folder, one tensor at a time.

The host holds one tensor of one layer of the base, or some rows of a tensor that no adapter changes. The
adapters are whole in memory. `jora_core.parameters.lora_math.merge_adapters` gives the same numbers for a
model in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jora_core.architecture.families import FAMILIES
from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors, model_rows
from jora_core.architecture.tensor_names import TensorRow
from jora_core.architecture.text_part import decoder_fields
from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.base.progress import progress
from jora_core.parameters.freed_memory import trim_freed_memory
from jora_core.parameters.lora_math import merged_weight, with_one_scale
from jora_core.parameters.trees import Adapter, LayerParams, LoraWeights
from jora_core.weights.checkpoint_folder import open_checkpoint
from jora_core.weights.companion_files import copy_companions
from jora_core.weights.safetensors_reader import numpy_dtype
from jora_core.weights.safetensors_writer import MAX_SHARD_SIZE, write_shards
from jora_core.weights.tensor_store import TensorStore, row_slices

# From this size on, merging takes long enough to be watched.
_PROGRESS_BYTES = 100 << 20


@dataclass(frozen=True)
class MergedWeights:
    """The weights of a model folder with adapters merged in. Each tensor is merged when it is read."""

    store: TensorStore
    config: ModelConfig
    adapters: tuple[Adapter, ...] = ()

    @classmethod
    def of(cls, store: TensorStore, config: ModelConfig, adapters: Sequence[Adapter] = ()) -> MergedWeights:
        """Return the weights of an opened model folder with adapters merged in, in this order.

        Args:
            store: the folder's tensors.
            config: the model's.
            adapters: adapters to merge.
        """
        return cls(store, config, tuple(map(on_host, adapters)))

    def layer(self, number: int) -> LayerParams:
        """Return one layer's weights without the layer axis, merged ones in float32, others as stored."""
        rows = [row for row in model_rows(self.config) if row.per_layer]
        return LayerParams(
            **{
                row.field: self._merged(row, number)
                if self._adapters_of(row)
                else jnp.asarray(self.store.read(row.name(number)))
                for row in rows
            }
        )

    def layer_shapes(self, number: int) -> LayerParams:
        """Return the shapes and types of what `layer` returns, without reading weights."""
        shapes = {
            row.field: jax.ShapeDtypeStruct(
                self.store.shape(row.name(number)),
                jnp.float32 if self._adapters_of(row) else numpy_dtype(self.store.dtype(row.name(number))),
            )
            for row in model_rows(self.config)
            if row.per_layer
        }
        return LayerParams(**shapes)  # type: ignore[arg-type]

    def parts(self, row: TensorRow, layer: int, dtype: str) -> Iterator[np.ndarray]:
        """Yield one tensor in parts of whole rows, merged in float32 and cast once to `dtype`.

        Args:
            row: the tensor's row of the table `TENSORS`.
            layer: number of the layer.
            dtype: numpy's name of the type.

        Raises:
            InputError: the base holds NaN or infinity, or a merged value is too large for `dtype`.
        """
        for part in self._wide_parts(row, layer):
            # An overflow gives infinity, which the check below reports with the tensor's name.
            with np.errstate(over="ignore"):
                narrow = part.astype(numpy_dtype(dtype), copy=False)
            if not np.isfinite(narrow).all():
                raise InputError(
                    f"{row.name(layer)} of the merged model holds values that {dtype} cannot; "
                    "choose dtype float32, or another adapter"
                )
            yield narrow

    def rows(self, row: TensorRow, layer: int = 0) -> Iterator[np.ndarray]:
        """Yield a tensor of the base as stored, in parts of whole rows that do not depend on the type."""
        name = row.name(layer)
        for part in row_slices(self.store.shape(name)):
            yield self.store.read(name, part)

    def _wide_parts(self, row: TensorRow, layer: int) -> Iterator[np.ndarray]:
        if not self._adapters_of(row):
            yield from self.rows(row, layer)
            return
        # Merged whole and not by rows: DoRA's norms and the product B A are computed once for the tensor.
        merged = np.asarray(self._merged(row, layer))
        for part in row_slices(merged.shape):
            yield merged[part]

    def _merged(self, row: TensorRow, layer: int) -> jax.Array:
        used = self._adapters_of(row)
        # Parts of arrays on the host: a part of a device's array would be a program to compile.
        pairs = tuple(jax.tree.map(lambda x: x[layer], adapter.weights[row.field]) for adapter in used)
        weight = jnp.asarray(self.store.read(row.name(layer)))
        return merged_tensor(weight, pairs, tuple(adapter.scale for adapter in used))

    def _adapters_of(self, row: TensorRow) -> list[Adapter]:
        return [adapter for adapter in self.adapters if row.field in adapter.weights]


def on_host(adapter: Adapter) -> Adapter:
    """Return an adapter with one scale whose arrays are numpy's, so that a layer of them is a view."""
    return jax.tree.map(np.asarray, with_one_scale(adapter))


# One program for each shape and number of adapters; all layers share it.
@partial(jax.jit, static_argnums=2)
def merged_tensor(weight: jax.Array, pairs: tuple[LoraWeights, ...], scales: tuple[float, ...]) -> jax.Array:
    """Compute `merged_weight` as a compiled program.

    Args:
        weight: [out, in].
        pairs: each adapter's matrices for the weight.
        scales: each adapter's scale.

    Returns:
        Merged weight float32 [out, in].
    """
    return merged_weight(weight, zip(pairs, scales, strict=True))


def write_merged(
    base: Path,
    config: ModelConfig,
    adapters: Sequence[Adapter],
    folder: Path,
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> str:
    """Write a Hugging Face folder with the base's weights and adapters merged in. Other files are copied.

    All fields of the base's config.json are kept, except the type of the weights. Tied heads stay tied. Each
    file is written atomically, the weights first; see `write_shards`.

    Args:
        base: the base model's folder.
        config: the base model's.
        adapters: adapters to merge, in this order.
        folder: folder to write, other than the base.
        dtype: type of the written weights; the base's type if None.
        max_shard_size: largest file in bytes, see `write_shards`.

    Returns:
        The type of the weights.

    Raises:
        InputError: the base cannot be used, `folder` is the base, or `folder` cannot be written.
    """
    if base.resolve() == folder.resolve():
        raise InputError(f"{folder} is the base model itself; choose another folder")
    store = open_checkpoint(base, config)
    places = {
        row.name(layer): (row, layer)
        # Layer by layer, as transformers orders a model: a shard holds whole layers but for its ends.
        for layer in range(config.num_layers)
        for row in model_rows(config)
        # The embedding comes before the first layer, final norm and head after the last.
        if row.per_layer or layer == (0 if row.field == "embedding" else config.num_layers - 1)
    }
    expected = expected_tensors(config)
    # The first tensor is the embedding. Where a checkpoint mixes types, all tensors get the embedding's.
    dtype = dtype or store.dtype(next(iter(expected)))
    weights = MergedWeights.of(store, config, adapters)
    size = sum(map(math.prod, expected.values())) * numpy_dtype(dtype).itemsize

    def parts(name: str) -> Iterator[np.ndarray]:
        yield from weights.parts(*places[name], dtype)
        # What merging one tensor has freed; else all of it adds up.
        trim_freed_memory()
        bar.advance()

    # No bar for a small model, whose merge is finished too soon.
    with progress("merge tensors", len(expected), shown=size >= _PROGRESS_BYTES) as bar:
        write_shards(folder, {name: expected[name] for name in places}, dtype, parts, max_shard_size)
    # Fields that this core does not read stay in the file: transformers may use them. Of a model
    # of images and text, the text part is written.
    source = base / "config.json"
    fields = decoder_fields(read_json_object(source, f"model folder {base}"), str(source))
    fields |= {
        # The file may spell these otherwise, or say that a head of its own is the embedding.
        "architectures": [FAMILIES[config.family].architecture],
        "model_type": config.family,
        "tie_word_embeddings": config.tie_embeddings,
    }
    # transformers 5 writes dtype, 4 wrote torch_dtype; only one of the two may stand there.
    name = "dtype" if "dtype" in fields else "torch_dtype"
    write_json(folder / "config.json", fields | {name: dtype})
    copy_companions(base, folder)
    return dtype
