"""Loading of a model's weights from a folder to the devices of the mesh, with optional quantization.

Each device allocates its share of a weight and fills this share in place, some rows of one layer at a time.
So the host holds no more than these rows, for any size of the model, its layers or its vocabulary. Each
process reads the slices of its own devices. Replicas of a slice share one read. Where the only device is the
host's processor, the rows are read into the memory of the weights themselves, without a compiled program.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors, model_rows, tensor_shape
from jora_core.architecture.tensor_names import TensorRow
from jora_core.base.progress import progress
from jora_core.parallel.mesh import make_mesh
from jora_core.parallel.placements import check_quantization, param_shardings, quantized_axes
from jora_core.parameters.quantization import quantize
from jora_core.parameters.trees import LayerParams, Params
from jora_core.specs.common import Quantization
from jora_core.weights.checkpoint_folder import open_checkpoint
from jora_core.weights.tensor_store import TensorStore

# Bytes that are on the host at once. With larger chunks the allocator keeps more of what was freed.
_CHUNK_BYTES = 4 << 20
_ALIGNMENT = 64
# From this size on, reading takes long enough to be watched.
_PROGRESS_BYTES = 100 << 20


def load_params(
    folder: Path | str,
    config: ModelConfig,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    quantization: Quantization = "none",
    projection_dtype: Any = None,
) -> Params:
    """Read a model's weights to their placements on the mesh.

    Args:
        folder: model folder in Hugging Face layout.
        config: the model's.
        dtype: type of the weights that are not quantized.
        mesh: data × tensor; one device if None.
        quantization: quantization of the projections, which become `QuantizedWeight`s without a float copy.
        projection_dtype: type of the projections where it is another one; see
            `jora_core.model.projections.frozen_type`.

    Raises:
        InputError: file missing or truncated; tensor missing, unexpected, misshaped or not finite; more
            tokens in the tokenizer than rows in the embedding; a mesh that cannot split this model.
    """
    mesh = mesh or make_mesh()
    check_quantization(config, mesh, quantization)
    # Names and shapes are checked before anything is allocated.
    store = open_checkpoint(folder, config)
    shardings = param_shardings(config, mesh)
    sizes = [math.prod(shape) for shape in expected_tensors(config).values()]
    # No bar for a small model, which is loaded too soon. Of several processes, only the first shows a bar.
    # Two bytes a value: most published files hold bfloat16 or float16.
    shown = 2 * sum(sizes) >= _PROGRESS_BYTES and not jax.process_index()

    def load(row: TensorRow) -> Any:
        sharding = getattr(shardings.layers if row.per_layer else shardings, row.field)
        field = _Field(
            mesh=mesh,
            # The layer axis is never split; a tensor of the file has none.
            axes=tuple(sharding.spec)[1:] if row.per_layer else tuple(sharding.spec),
            shape=tensor_shape(row, config),
            layers=config.num_layers if row.per_layer else None,
            quantization=quantization if row.is_projection else "none",
            dtype=jnp.dtype((row.is_projection and projection_dtype) or dtype),
        )
        return _load_field(store, row, field, bar.advance)

    with progress("load tensors", len(sizes), shown) as bar:
        layers = {row.field: load(row) for row in model_rows(config) if row.per_layer}
        rest = {row.field: load(row) for row in model_rows(config) if not row.per_layer}
    return Params(layers=LayerParams(**layers), **rest)


@dataclass(frozen=True)
class _Field:
    """Key of the compiled programs that fill one field of `Params`. Equal fields share programs.

    Attributes:
        axes: mesh axis of each dimension, without the layer axis.
        shape: shape without the layer axis.
        layers: length of the leading layer axis; None for a field without this axis.
    """

    mesh: Mesh
    axes: tuple[str | None, ...]
    shape: tuple[int, ...]
    layers: int | None
    quantization: Quantization
    dtype: np.dtype

    @property
    def sharding(self) -> NamedSharding:
        """Placement of the field without the layer axis."""
        return NamedSharding(self.mesh, PartitionSpec(*self.axes))

    @property
    def on_host(self) -> bool:
        """Whether the field lies in this process's own memory, as it is in the file but for its type."""
        devices = list(self.mesh.devices.flat)
        return len(devices) == 1 and devices[0].platform == "cpu" and self.quantization == "none"

    def convert(self, rows: jax.Array, in_axis: str | None) -> Any:
        """Cast or quantize rows of the file."""
        if self.quantization == "none":
            return rows.astype(self.dtype)
        return quantize(rows, self.quantization, in_axis)


def load_on_host(store: TensorStore, row: TensorRow, field: _Field, advance: Callable[[], None]) -> jax.Array:
    """Read one field to memory that becomes an array of the host's processor without a copy.

    The bits are those of `_load_field`, which compiles two programs for each shape and touches the memory
    three times.

    Args:
        store: the opened model folder.
        row: the field's row of the table `TENSORS`.
        field: shape, type and placement.
        advance: called after each tensor.
    """
    shape = field.shape if field.layers is None else (field.layers, *field.shape)
    # JAX takes memory over only where it is aligned to 64 bytes, which numpy does not promise.
    raw = np.empty(math.prod(shape) * field.dtype.itemsize + _ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % _ALIGNMENT
    whole = raw[begin : begin + raw.size - _ALIGNMENT].view(field.dtype).reshape(shape)
    for layer in range(field.layers or 1):
        part = whole if field.layers is None else whole[layer]
        name = row.name(layer)
        count = max(1, _CHUNK_BYTES // (math.prod(field.shape[1:]) * jnp.dtype(store.dtype(name)).itemsize))
        for first in range(0, field.shape[0], count):
            rows = slice(first, first + count)
            part[rows] = store.read(name, (rows, *[slice(None)] * (len(field.shape) - 1)))
        advance()
    lead = () if field.layers is None else (None,)
    place = NamedSharding(field.mesh, PartitionSpec(*lead, *field.axes))
    return jax.device_put(whole, place, may_alias=True)


def _load_field(store: TensorStore, row: TensorRow, field: _Field, advance: Callable[[], None]) -> Any:
    """Allocate one field and fill it chunk by chunk."""
    if field.on_host:
        return load_on_host(store, row, field, advance)
    # Fields of equal shape and type share two programs, which `_programs` caches.
    empty, fill = _programs(field)
    local = field.sharding.shard_shape(field.shape)
    holders = _holders(field)
    value = empty()
    for layer in range(field.layers or 1):
        name = row.name(layer)
        row_bytes = math.prod(field.shape[1:]) * jnp.dtype(store.dtype(name)).itemsize
        count = min(local[0], max(1, _CHUNK_BYTES // row_bytes))
        for first in range(0, local[0], count):
            # The last chunk repeats rows of the one before: another size would compile a second program.
            first = min(first, local[0] - count)
            parts = []
            for start, (span, devices) in holders.items():
                host = store.read(name, (slice(start + first, start + first + count), *span))
                parts += [jax.device_put(host[:, cut] if span else host, d) for d, cut in devices]
                # JAX keeps `host` until its copy ends: without this wait the next read is in memory too.
                jax.block_until_ready(parts)
            # The chunk has as many rows from each device's slice, so they are not adjacent in the file.
            shape = (count * field.shape[0] // local[0], *field.shape[1:])
            chunk = jax.make_array_from_single_device_arrays(shape, field.sharding, parts)
            # Layer and row are traced numbers: as Python ints each pair would compile a program of its own.
            value = fill(value, chunk, np.int32(layer), np.int32(first))
            jax.block_until_ready(value)  # else reading runs ahead, and the chunks pile up
        advance()
    return value


def _holders(field: _Field) -> dict[int, tuple[tuple[slice, ...], list[tuple[Any, slice]]]]:
    """Return the parts of a field's tensors that this process reads, by the first row of a device's slice.

    Devices whose slices begin at the same row share one read of all their columns. So the file is read in
    long runs, and replicas need no separate read.

    Returns:
        The range of columns for the devices (none for a vector), and each device's slice of this range.
    """
    found: dict[int, list[tuple[Any, slice]]] = {}
    for device, index in field.sharding.addressable_devices_indices_map(field.shape).items():
        assert index is not None
        rows, *columns = (slice(*s.indices(n)[:2]) for s, n in zip(index, field.shape, strict=True))
        found.setdefault(rows.start, []).append((device, columns[0] if columns else slice(0, 1)))
    holders = {}
    for start, devices in found.items():
        low, high = min(cut.start for _, cut in devices), max(cut.stop for _, cut in devices)
        cuts = [(device, slice(cut.start - low, cut.stop - low)) for device, cut in devices]
        holders[start] = ((slice(low, high),) if len(field.shape) > 1 else (), cuts)
    return holders


@functools.cache
def _programs(field: _Field) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Return two compiled programs: one makes the empty field, one writes a chunk into the field.

    The second takes (field, chunk, layer, first row). A chunk has some rows of every device's slice. The
    devices exchange only the largest magnitude of int8 rows whose inputs are split.
    """
    # Shapes and types of a conversion's result, without the computation.
    one = jax.eval_shape(lambda x: field.convert(x, None), jax.ShapeDtypeStruct(field.shape, jnp.float32))
    axes = (field.axes,) if field.quantization == "none" else quantized_axes(field.quantization, *field.axes)
    lead = () if field.layers is None else (field.layers,)
    specs = jax.tree.unflatten(
        jax.tree.structure(one), [PartitionSpec(*[None] * len(lead), *names) for names in axes]
    )

    def empty() -> Any:
        return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), one)

    def fill(value: Any, chunk: jax.Array, layer: jax.Array, first: jax.Array) -> Any:
        start = (first,) if field.layers is None else (layer, first)

        def put(whole: jax.Array, new: jax.Array) -> jax.Array:
            # As integers: XLA's CPU compiler widens a bfloat16 update to float32, the whole field with it.
            bits = jnp.dtype(f"u{whole.dtype.itemsize}")
            new = jax.lax.bitcast_convert_type(new, bits).reshape((*[1] * len(lead), *new.shape))
            at = (*start, *[0] * (new.ndim - len(start)))
            changed = jax.lax.dynamic_update_slice(jax.lax.bitcast_convert_type(whole, bits), new, at)
            return jax.lax.bitcast_convert_type(changed, whole.dtype)

        return jax.tree.map(put, value, field.convert(chunk, field.axes[-1]))

    scalar = PartitionSpec()
    filled = jax.shard_map(
        fill,
        mesh=field.mesh,
        in_specs=(specs, PartitionSpec(*field.axes), scalar, scalar),
        out_specs=specs,
        # Devices with the same rows get the same chunk, so replicas are equal; the check cannot see that.
        check_vma=False,
    )
    placed = jax.tree.map(lambda spec: NamedSharding(field.mesh, spec), specs)
    # Donated: each chunk is written into the field's own memory; else the field would be copied for each.
    return jax.jit(empty, out_shardings=placed), jax.jit(filled, donate_argnums=0)
