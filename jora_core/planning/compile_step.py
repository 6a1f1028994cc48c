"""Compilation of a training step from shapes alone, and its memory by kind. No weight is allocated."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jora_core.architecture.model_config import ModelConfig
from jora_core.parallel.mesh import BATCH, TENSOR
from jora_core.parallel.placements import (
    adapter_shardings,
    batch_sharding,
    check_quantization,
    param_shardings,
    quantized_axes,
)
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.parameters.quantization import quantize_params
from jora_core.parameters.trees import Params, QuantizedWeight
from jora_core.planning.buffer_assignment import Buffer, Heap, read_heap
from jora_core.planning.compile_target import Target
from jora_core.planning.hlo_text import Program, parse_program
from jora_core.specs.common import Quantization
from jora_core.specs.data import DataSpec
from jora_core.specs.planning import MemorySpec
from jora_core.specs.train import TrainSpec
from jora_core.training.train_step import build_step

HEAP_KINDS = ("activations", "logits", "gradients", "workspace")
# Examples: Ran out of memory on HBM, the total memory required for HLO temporaries (27.39G) exceeds available
# HBM (15.75G). Ran out of memory in memory space hbm. Used 27.39G of 15.75G hbm.
_SIZE = r"(\d[\d.]*)([KMGT])"
_REFUSED = re.compile(rf"(?i)memory required[^(]*\({_SIZE}\) exceeds available HBM|used {_SIZE} of \S+ hbm")


class DoesNotFitError(Exception):
    """The compiler refuses a program that needs more memory than the device has.

    Attributes:
        total: bytes that the program needs, as the compiler says.
    """

    def __init__(self, total: int) -> None:
        super().__init__(f"the program needs {total / 1e9:.2f} GB")
        self.total = total


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step on one device, in bytes by kind.

    Attributes:
        rows: rows of the batch.
        seq_len: slots of a row.
        weights: frozen weights.
        adapter: trained parameters, AdamW's moments, and gradients.
        activations: arrays that the forward pass keeps for the backward pass.
        logits: arrays with an axis of the vocabulary, without the weights.
        workspace: all other arrays: those of one layer, buffers of collectives, the batch.
        offloaded: host memory of offloaded activations.
        heap: the temporary arrays of the compiled program.
        program: the instructions of the compiled program.
    """

    rows: int
    seq_len: int
    weights: int
    adapter: int
    activations: int
    logits: int
    workspace: int
    offloaded: int
    heap: Heap
    program: Program

    @property
    def total(self) -> int:
        """All bytes of one device."""
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        """Return the bytes of each kind, by name."""
        return {
            "weights": self.weights,
            "adapter": self.adapter,
            "activations": self.activations,
            "logits": self.logits,
            "workspace": self.workspace,
        }

    def largest(self, count: int) -> list[dict[str, Any]]:
        """Return the largest arrays that share no address, each with its JAX operation."""
        found = []
        for buffer in self.heap.largest(count):
            made = self.program.named.get(buffer.instruction.partition("{")[0])
            found.append(
                {
                    "bytes": buffer.bytes,
                    "shape": f"{buffer.dtype}[{','.join(map(str, buffer.shape))}]",
                    "instruction": buffer.instruction,
                    "operation": made.op_name if made else "",
                }
            )
        return found


def compile_step(target: Target, config: ModelConfig, spec: MemorySpec, seq_len: int) -> StepMemory:
    """Compile the training step of a spec and return the memory of one device.

    Args:
        target: devices to compile for.
        config: the model's.
        spec: settings of the training step.
        seq_len: slots of a row.

    Raises:
        DoesNotFitError: the compiler refuses the step. Only that of a TPU does.
    """
    dtype = target.dtype(spec.dtype)
    mesh = target.mesh
    lora = spec.trainable == "lora"
    # Weights that are all trained are float32 master weights, as in `train`.
    params = _abstract_params(config, spec.quantization, dtype if lora else jnp.dtype(jnp.float32), mesh)
    trainable: Any = params
    if lora:
        adapter = jax.eval_shape(
            lambda key, below: init_adapter(config, spec.lora, key, params=below), _key(), params
        )
        trainable = _placed(adapter, adapter_shardings(config, adapter, mesh))
    frozen = params if lora else None
    # A constant rate: the schedule's values take no part in the memory.
    step = build_step(config, _train_spec(spec, dtype, target), mesh, lambda _: jnp.float32(1e-4), trainable)
    state = jax.eval_shape(step.start, trainable)
    sums = jax.eval_shape(step.zero, state)
    batch = _batch(spec, mesh, seq_len)
    with jax.set_mesh(mesh):
        # Two programs run in a step. The forward and backward pass holds the activations. The optimizer's
        # update counts only where it needs more memory than that pass.
        compiled, heap = _compile(step.accumulate.lower(sums, state, frozen, batch, 0), target)
        updated = step.update.lower(state, sums).compile(compiler_options=dict(target.options))
    program = parse_program(compiled.as_text())
    stats, update = compiled.memory_analysis(), updated.memory_analysis()
    gradients = {_shard_shape(leaf) for leaf in jax.tree.leaves(trainable)}
    parts = heap.divided(
        lambda buffer: _kind(buffer, program, config, mesh.shape[TENSOR], gradients), HEAP_KINDS
    )
    weights = _bytes(frozen)
    trained = _bytes(state) + _bytes(sums)
    inputs = _bytes(batch)
    # A donated argument is written in place: its result is the alias, already counted as an input.
    peak = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    update_peak = update.temp_size_in_bytes + update.output_size_in_bytes - update.alias_size_in_bytes
    # The few temporaries outside of the heap, and what only the optimizer's update needs beyond the peak.
    other = max(peak - heap.bytes, 0) + max(update_peak - max(peak, heap.bytes), 0)
    if target.kind == "tpu":
        # Arrays lie in tiles there. One whose last axes are not multiples of a tile takes more than its size.
        other += max(stats.argument_size_in_bytes - weights - trained - inputs, 0)
    return StepMemory(
        rows=spec.rows,
        seq_len=seq_len,
        weights=weights,
        adapter=trained + parts["gradients"],
        activations=parts["activations"],
        logits=parts["logits"],
        workspace=parts["workspace"] + inputs + other,
        offloaded=stats.host_temp_size_in_bytes,
        heap=heap,
        program=program,
    )


def _abstract_params(config: ModelConfig, quantization: Quantization, dtype: Any, mesh: Mesh) -> Params:
    """Return the shapes and shardings of the weights, the same as in training."""

    def make(key: jax.Array) -> Params:
        params = init_params(config, key, dtype)
        return params if quantization == "none" else quantize_params(params, quantization)

    if quantization != "none":
        check_quantization(config, mesh, quantization)

    def place(leaf: Any, where: NamedSharding) -> Any:
        if not isinstance(leaf, QuantizedWeight):
            return _with_place(leaf, where)
        # A PartitionSpec may be shorter than the shape. The missing axes are not split.
        axes = (*where.spec, *(None,) * (len(leaf.shape) - len(where.spec)))
        codes, scale = quantized_axes(leaf.kind, *axes)
        return leaf.replace(  # type: ignore[attr-defined]
            codes=_with_place(leaf.codes, NamedSharding(mesh, PartitionSpec(*codes))),
            scale=_with_place(leaf.scale, NamedSharding(mesh, PartitionSpec(*scale))),
        )

    shapes = jax.eval_shape(make, _key())
    # A quantized weight is a tree of codes and scale, but has the one sharding of its dense form.
    return jax.tree.map(
        place, shapes, param_shardings(config, mesh), is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight)
    )


def _with_place(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _compile(lowered: Any, target: Target) -> tuple[Any, Heap]:
    """Compile a lowered program and read its heap.

    `compiled.memory_analysis()` gives only the size of all temporaries together. Their division by kind needs
    the buffer assignment, which XLA writes only to a dump.
    """
    with tempfile.TemporaryDirectory(prefix="jora-memory-") as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options={**target.options, **dump})
        except jax.errors.JaxRuntimeError as err:
            total = needed_bytes(str(err))
            if total is None:
                raise
            raise DoesNotFitError(total) from None
        return compiled, read_heap(Path(folder), main_memory_only=target.kind == "tpu")


def needed_bytes(message: str) -> int | None:
    """Return the bytes that a program needs, from the message of the TPU compiler that refuses it."""
    found = _REFUSED.search(message)
    if found is None:
        return None
    amount, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(amount) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit.upper()])


def _train_spec(spec: MemorySpec, dtype: np.dtype, target: Target) -> TrainSpec:
    """Return the `TrainSpec` of the planned step, whose paths are never read."""
    unused = Path("unused")
    settings = {
        "model": unused,
        "data": DataSpec(records=unused),  # type: ignore[call-arg]
        "max_steps": 1,
        "output_dir": unused,
        "checkpoint_dir": unused,
    }
    known = {name: getattr(spec, name) for name in ("trainable", "lora", "mesh", "remat", "quantization")}
    made = TrainSpec.model_validate(settings | known | {"dtype": spec.dtype})
    # Set after validation: float16, which stands in for bfloat16, is no type that a spec may name. No device
    # tells the model's code that the program is for an NVIDIA card, and cuDNN needs one to be compiled for.
    attention = "trees" if target.kind == "cuda" else made.attention
    return made.model_copy(update={"dtype": dtype.name, "attention": attention})


def _kind(buffer: Buffer, program: Program, config: ModelConfig, tensor: int, gradients: set) -> str:
    """Return the kind of a temporary array, from shape and instruction, since XLA does not keep our names."""
    # Gradients first: that of a trained embedding has an axis of the vocabulary too.
    if buffer.shape in gradients and buffer.dtype == "f32":
        return "gradients"
    vocabulary = {config.vocab_size, -(-config.vocab_size // tensor)}
    width = {config.hidden_size, config.hidden_size // tensor}
    if len(buffer.shape) > 1 and vocabulary & set(buffer.shape) and not width & set(buffer.shape):
        return "logits"
    # What the scan over layers keeps for the backward pass is written layer by layer into an array [L, ...].
    made = program.named.get(buffer.instruction.partition("{")[0])
    if (
        made is not None
        and len(buffer.shape) > 2
        and buffer.shape[0] == config.num_layers
        and program.makes(made, "dynamic-update-slice")
    ):
        return "activations"
    return "workspace"


def _batch(spec: MemorySpec, mesh: Any, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
    blocks = mesh.shape[BATCH]
    rows = -(-spec.rows // blocks) * blocks
    answers = spec.answer_tokens or max(seq_len // 8, 1)
    chosen = (blocks, rows // blocks * min(answers, seq_len))
    place = batch_sharding(mesh)

    def array(shape: tuple[int, int], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    arrays = {name: array((rows, seq_len)) for name in ("tokens", "positions", "until")}
    return arrays | {
        "index": array(chosen),
        "targets": array(chosen),
        "weights": array(chosen, jnp.float32),
    }


def _placed(tree: Any, places: Any) -> Any:
    return jax.tree.map(_with_place, tree, places)


def _key() -> jax.ShapeDtypeStruct:
    # The key is a shape too, because there may be no device that could hold a real key.
    return jax.eval_shape(lambda: jax.random.key(0))


def _shard_shape(leaf: Any) -> tuple[int, ...]:
    place = leaf.sharding
    return tuple(place.shard_shape(leaf.shape)) if isinstance(place, NamedSharding) else tuple(leaf.shape)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(_shard_shape(leaf))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
