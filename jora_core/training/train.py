"""Training of an adapter or a whole model from a spec, up to the written result."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.errors import InputError
from jora_core.base.record_columns import TRAINED_RECORDS
from jora_core.data.batches import BatchStream
from jora_core.data.examples import TrainData, load_groups
from jora_core.data.tokenizer import load_tokenizer
from jora_core.model.blockwise_attention import fitting_block
from jora_core.model.projections import emulated_products, frozen_type
from jora_core.parallel.mesh import make_mesh
from jora_core.parallel.placements import adapter_shardings, check_quantization, param_shardings
from jora_core.parallel.processes import (
    check_whole,
    first_before_others,
    is_first,
    join_processes,
    put,
    wait_for_all,
    whole_on_host,
)
from jora_core.parallel.program_cache import set_program_cache
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.parameters.quantization import quantize_params
from jora_core.parameters.trees import Adapter, Params
from jora_core.specs.adapter_targets import lora_targets
from jora_core.specs.train import TrainSpec
from jora_core.training.continued_training import begin_from_state, save_training_state
from jora_core.training.loop import Run, run_loop
from jora_core.training.optimizer import make_schedule
from jora_core.training.reporting.reporters import report_outputs, require_reporters
from jora_core.training.train_step import build_step
from jora_core.training.training_checkpoints import run_digest
from jora_core.weights.adapter_folder import load_adapter, save_adapter
from jora_core.weights.checkpoint_folder import save_params
from jora_core.weights.companion_files import copy_companions
from jora_core.weights.load_params import load_params
from jora_core.weights.model_folder import read_model


def train(spec: TrainSpec, verbose: bool = True) -> dict[str, Any]:
    """Train an adapter or a whole model as described by a spec.

    Training resumes if the checkpoint folder holds a state of the same spec.

    Args:
        spec: model, data, optimizer, mesh, and output folders.
        verbose: show progress on standard error.

    Returns:
        The content of ``result.json`` in the output folder.

    Raises:
        InputError: the spec's files or values cannot be used.
        DivergedError: the loss became NaN or infinite.
        Interrupted: SIGTERM came; the state was saved.
    """
    began = time.perf_counter()
    require_reporters(spec.report_to)
    set_program_cache(spec.compilation_cache_dir)
    # Before anything starts a JAX backend: processes cannot join afterwards.
    join_processes(spec.distributed)
    verbose = verbose and is_first()
    # Random weights need no weights on disk.
    config = ModelConfig.from_hf(spec.model) if spec.init == "random" else read_model(spec.model)
    mesh = make_mesh(spec.mesh.data, spec.mesh.tensor)
    check_whole(mesh)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    with jax.set_mesh(mesh), jax.default_matmul_precision(spec.matmul_precision):
        emulated = emulated_products()
        lines = [] if emulated is None else [emulated]
        # The first process fills the token cache; the others read it instead of doing the same work.
        with first_before_others("records"):
            data = load_groups(spec.data, tokenizer, spec.seed, lines.append, spec.mesh.data)
        stream = BatchStream(
            data.train,
            spec.data.tokens_per_batch,
            seed=spec.seed,
            blocks=spec.mesh.data,
            curriculum=spec.data.curriculum,
        )
        steps = _total_steps(spec, stream)
        if spec.continue_from is not None:
            with first_before_others("continued state"):
                lines += begin_from_state(spec, steps) if is_first() else []
        trainable, frozen = _initial_weights(spec, config, mesh)
        schedule, block = make_schedule(spec.optim, steps), fitting_block(stream.sample_of_until())
        functions = build_step(config, spec, mesh, schedule, trainable, block)
        run = Run(spec, config, steps, stream, _validation_stream(spec, data), functions, frozen)
        state, result = run_loop(run, functions.start(trainable), lines, verbose)
    result |= {"data": data.counts, "seconds_total": round(time.perf_counter() - began, 3)}
    # A collective: all processes must call it, although only the first writes.
    trainable = whole_on_host(state.trainable)
    if is_first():
        if spec.keep_state:
            save_training_state(spec, result["steps"], result["best_step"] if spec.keep_best else None)
        result["trained_records"] = _write_trained_records(spec, stream, result)
        _write_outputs(spec, config, trainable, result)
        report_outputs(spec, run_digest(spec))
    wait_for_all("outputs")
    return result


def _total_steps(spec: TrainSpec, stream: BatchStream) -> int:
    if spec.max_steps is not None:
        return spec.max_steps
    assert spec.n_epochs is not None
    return max(1, math.ceil(stream.count(spec.n_epochs) / spec.gradient_accumulation_steps))


def _validation_stream(spec: TrainSpec, data: TrainData) -> BatchStream | None:
    if not data.validation:
        return None
    # The same batches in the same order at each evaluation, so that the losses can be compared.
    return BatchStream(
        data.validation, spec.data.tokens_per_batch, seed=spec.seed, blocks=spec.mesh.data, shuffle=False
    )


def _initial_weights(spec: TrainSpec, config: ModelConfig, mesh: Any) -> tuple[Any, Params | None]:
    """Return the tree to train and, for an adapter, the frozen base weights."""
    # A host array: a key that lies on one device is no valid argument of a program of several processes.
    key = np.asarray(jax.random.key_data(jax.random.key(spec.seed)))
    # Weights that are trained stay float32; see `build_step`.
    dtype = jnp.dtype("float32" if spec.trainable == "all" else spec.dtype)
    if spec.init == "random":
        make = jax.jit(
            lambda data: init_params(config, jax.random.wrap_key_data(data), dtype),
            out_shardings=param_shardings(config, mesh),
        )
        params = make(key)
        kind = spec.quantization
        if kind != "none":
            check_quantization(config, mesh, kind)
            params = jax.jit(lambda p: quantize_params(p, kind))(params)
    else:
        # Trained weights keep all bits, and so do those that DoRA's norm reads.
        kept = frozen_type(dtype, exact=spec.trainable == "all" or spec.lora.use_dora)
        params = load_params(spec.model, config, dtype, mesh, spec.quantization, kept)
    if spec.trainable == "all":
        return params, None
    if spec.adapter is not None:
        adapter = _adapter_to_continue(spec, config)
        return put(adapter, adapter_shardings(config, adapter, mesh)), params

    def new(data: jax.Array, params: Params) -> Adapter:
        # Another key than that of random base weights, which the adapter must not repeat.
        key = jax.random.fold_in(jax.random.wrap_key_data(data), 1)
        return init_adapter(config, spec.lora, key, params=params)

    # Shapes first: places must be known before the adapter is made, each part on its own device.
    places = adapter_shardings(config, jax.eval_shape(new, key, params), mesh)
    return jax.jit(new, out_shardings=places)(key, params), params


def _adapter_to_continue(spec: TrainSpec, config: ModelConfig) -> Adapter:
    assert spec.adapter is not None
    adapter, found = load_adapter(spec.adapter, config)
    same = (
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
    )
    for name in same:
        if getattr(found, name) != getattr(spec.lora, name):
            raise InputError(
                f"{spec.adapter}: the adapter has {name}={getattr(found, name)}, the spec lora.{name}="
                f"{getattr(spec.lora, name)}; give the adapter's own value to go on from it"
            )
    targets = lora_targets(spec.lora, config)
    if set(found.target_modules) != set(targets):
        raise InputError(
            f"{spec.adapter}: the adapter is on {', '.join(found.target_modules)}, the spec's "
            f"lora.target_modules are {', '.join(targets)}; they must be the same"
        )
    # Dropout belongs to the run and not to the weights, so the new spec's value is used.
    return adapter.replace(dropout=spec.lora.lora_dropout)  # type: ignore[attr-defined]


def _write_trained_records(spec: TrainSpec, stream: BatchStream, result: dict[str, Any]) -> dict[str, int]:
    """Write which records the weights have learned from, and how often; return the two sums.

    The microbatches follow from the seed and the lengths alone, so they are counted and not remembered.
    """
    # Of several states, the one that is kept: the records of later steps taught other weights.
    steps = result.get("weights_of_step", result["steps"])
    counts = stream.record_counts(steps * spec.gradient_accumulation_steps)
    names = sorted(counts)
    table = pa.table({"id": names, "times": pa.array([counts[name] for name in names], pa.int32())})
    with atomic_path(spec.output_dir / TRAINED_RECORDS) as temporary:
        pq.write_table(table, temporary)
    return {"records": len(names), "times": counts.total()}


def _write_outputs(spec: TrainSpec, config: ModelConfig, trainable: Any, result: dict[str, Any]) -> None:
    """Write the adapter or the model, then ``result.json``, which marks complete outputs."""
    folder = spec.output_dir
    if spec.trainable == "lora":
        # The name of the base's folder, because a path is useless on another machine.
        save_adapter(trainable, folder, spec.lora, spec.model.resolve().name)
    else:
        copy_companions(spec.model, folder)
        save_params(trainable, config, folder, jnp.dtype(spec.dtype))
    write_json(folder / "result.json", result)
