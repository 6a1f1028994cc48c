"""Four virtual devices compute what one does, and meshes that cannot work are refused.

This file is also the program that the test runs in a process of its own: the number of virtual devices is
fixed when JAX starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import model_projections
from jora_core.base.errors import InputError
from jora_core.generation.choice_scores import _token_logprobs
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.parallel.mesh import make_mesh
from jora_core.parallel.placements import adapter_shardings, check_mesh, param_shardings
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.specs.train import TrainSpec
from jora_core.training.optimizer import make_schedule
from jora_core.training.train_step import build_step
from jora_core.weights.checkpoint_folder import save_params
from jora_core.weights.load_params import load_params
from tests.jora_core.family_cases import CASES as FAMILIES
from tests.jora_core.trees import until_of

TENSOR4, BOTH, DATA4 = (1, 4), (2, 2), (4, 1)
LENGTH = 16
# Of these the answers are compared too; `test_generate_mesh` has the rest of generation.
ANSWERING = ("replicated", "int8", "gemma3", "olmo2")
# Name to config, meshes to compare with one device, and changes of the order.
CASES: dict[str, tuple[ModelConfig, tuple[tuple[int, int], ...], dict[str, Any]]] = {
    "grouped": (
        ModelConfig(96, 32, 48, 2, 4, 4, 8, tie_embeddings=True, initializer_range=0.2),
        (TENSOR4, BOTH, DATA4),
        {},
    ),
    # Two key/value heads do not fill a tensor axis of four; a vocabulary of 98 does not divide by four.
    "replicated": (ModelConfig(98, 32, 48, 2, 4, 2, 8, initializer_range=0.2), (TENSOR4,), {}),
    "dora": (
        ModelConfig(96, 32, 48, 2, 4, 2, 8, initializer_range=0.2),
        (TENSOR4, BOTH),
        {"lora": {"use_dora": True}, "remat": "dots"},
    ),
    "int8": (
        ModelConfig(96, 32, 48, 2, 4, 2, 8, initializer_range=0.2),
        (TENSOR4,),
        {"quantization": "int8", "remat": "attention"},
    ),
    "nf4": (
        ModelConfig(96, 64, 256, 2, 4, 4, 64, initializer_range=0.2),
        (TENSOR4,),
        {"quantization": "nf4", "remat": "none"},
    ),
    **{
        name: (ModelConfig.from_fields(FAMILIES[name] | {"initializer_range": 0.2}), (TENSOR4,), {})
        for name in ("qwen2", "gemma2", "gemma3", "olmo2", "llama-biases")
    },
}
# Each program of the others takes as long to compile: those are slow tests.
QUICK = ["grouped", "replicated", "int8", "gemma3"]


def make_batch(vocabulary: int, data: int) -> dict[str, np.ndarray]:
    """Four rows: packed, with a prefix and suffixes, and with padding; every third position has loss."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (4, LENGTH), dtype=np.int32)
    segments, suffixes = np.ones_like(tokens), np.zeros_like(tokens)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (4, 1))
    segments[1, 9:], positions[1, 9:] = 2, np.arange(LENGTH - 9)
    suffixes[2, 6:10], suffixes[2, 10:], positions[2, 10:] = 1, 2, np.arange(6, LENGTH - 4)
    segments[3, 12:] = 0
    index = np.arange(0, 4 * LENGTH, 3, dtype=np.int32)
    index = index[segments.reshape(-1)[index] > 0][:20].reshape(1, -1)
    if data > 1:  # numbered within each device's rows, and padded to one size
        rows = 4 // data * LENGTH
        parts = [index[index // rows == block] % rows for block in range(data)]
        index = np.zeros((data, 20), np.int32)
        for block, part in enumerate(parts):
            index[block, : len(part)] = part
        weights = np.asarray([[i < len(part) for i in range(20)] for part in parts], np.float32)
    else:
        weights = np.ones((1, 20), np.float32)
    rows_of_block = tokens.reshape(index.shape[0], -1)
    targets = (np.take_along_axis(rows_of_block, index, axis=1) * 7 + 1) % vocabulary
    return {
        "tokens": tokens,
        "positions": positions,
        "until": until_of(segments, suffixes),
        "index": index,
        "targets": targets.astype(np.int32),
        "weights": weights,
    }


def compute(
    folder: Path, config: ModelConfig, changes: dict[str, Any], data: int, tensor: int
) -> dict[str, Any]:
    """Losses, squared norms of all gradients, and for some models greedy tokens, on one mesh."""
    lora = {"r": 4, "lora_dropout": 0.1, "target_modules": list(model_projections(config))} | changes.get(
        "lora", {}
    )
    order = {
        "model": folder,
        "data": {"records": "unused"},
        "max_steps": 1,
        "mesh": {"data": data, "tensor": tensor},
        "remat": "full",
        "output_dir": "unused",
        "checkpoint_dir": "unused",
    }
    spec = TrainSpec.model_validate(order | changes | {"lora": lora})
    mesh = make_mesh(data, tensor)
    with jax.set_mesh(mesh):
        params = load_params(folder, config, jnp.float32, mesh, spec.quantization)
        adapter = init_adapter(config, spec.lora, jax.random.key(1), params=params)
        adapter = jax.tree.map(lambda x: x + 0.05, adapter)
        adapter = jax.device_put(adapter, adapter_shardings(config, adapter, mesh))
        step = build_step(config, spec, mesh, make_schedule(spec.optim, 1), adapter)
        state = step.start(adapter)
        batch = make_batch(config.vocab_size, data)
        sums = step.accumulate(step.zero(state), state, params, batch, 0)
        still = step.evaluate(state, params, batch)[0]
        arrays = {name: batch[name] for name in ("tokens", "positions", "until", "index", "targets")}
        # One target at each position.
        arrays["at"] = np.tile(np.arange(batch["index"].shape[1], dtype=np.int32), (len(batch["index"]), 1))
        logprobs = _token_logprobs(
            params, adapter, arrays, config, mesh, attention="auto", attention_block=None
        )
        limits = GenerationSettings(eos_ids=(), max_new_tokens=5)
        prompts = [batch["tokens"][row, :length] for row, length in enumerate((3, 9, 5, LENGTH))]
        answers = (
            generate(params, config, prompts, limits, adapter=adapter) if folder.name in ANSWERING else []
        )
    return {
        "loss": float(sums.loss),
        "loss without dropout": float(still),
        "loss of the last layer's part": -float((np.asarray(logprobs) * batch["weights"]).sum()),
        "norms": [float((x**2).sum()) for x in jax.tree.leaves(sums.grads)],
        "tokens": [answer.tolist() for answer in answers],
        "shards": [
            jax.tree.leaves(getattr(params.layers, name))[0].addressable_shards[0].data.shape
            for name in ("q_proj", "k_proj", "down_proj")
        ],
        "embedding": params.embedding.addressable_shards[0].data.shape,
    }


# A dozen programs are compiled and run: a minute on two idle cores, much more where others use them.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each mesh computes for the quick cases."""
    return computed(tmp_path_factory.mktemp("models"), QUICK)


@pytest.fixture(scope="module")
def slow_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each mesh computes for the other cases."""
    return computed(tmp_path_factory.mktemp("models"), [name for name in CASES if name not in QUICK])


def computed(folder: Path, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Compute cases in a process with four devices: name to the results of one device and of each mesh."""
    for name in names:
        config = CASES[name][0]
        params = jax.jit(partial(init_params, config))(jax.random.key(0))
        # Norms and biases are constants at birth, which would hide a mistake in where they are.
        params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape) * 1.7), params)
        save_params(params, config, folder / name)
    env = os.environ | {
        # Little optimisation: these programs run for a moment and take long to compile.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *names], env=env, capture_output=True, text=True, timeout=880
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", QUICK)
def test_every_mesh_computes_the_same(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    check_meshes(results[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_every_mesh_of_other_cases_computes_the_same(
    slow_results: dict[str, list[dict[str, Any]]], name: str
) -> None:
    check_meshes(slow_results[name])


def check_meshes(results: Sequence[dict[str, Any]]) -> None:
    """Compare what each mesh computes with what the first one does."""
    one, *others = results
    assert one["loss"] != one["loss without dropout"]
    for found in results:
        # Choices compute the end of the last layer at the picked positions only, the loss everywhere.
        assert found["loss of the last layer's part"] == pytest.approx(
            found["loss without dropout"], rel=1e-5
        )
    for found in others:
        for loss in ("loss", "loss without dropout"):
            assert found[loss] == pytest.approx(one[loss], rel=1e-5)
        np.testing.assert_allclose(found["norms"], one["norms"], rtol=1e-3, atol=1e-9)
        assert found["tokens"] == one["tokens"]


def test_each_device_holds_its_part(results: dict[str, list[dict[str, Any]]]) -> None:
    _, tensor4, both, data4 = results["grouped"]
    assert tensor4["shards"] == [[2, 8, 32], [2, 8, 32], [2, 32, 12]]
    assert both["shards"][0] == [2, 16, 32] and data4["shards"][0] == [2, 32, 32]
    assert tensor4["embedding"] == [24, 32]
    # Fewer key/value heads than shards, and an odd vocabulary, are held whole.
    whole = results["replicated"][1]
    assert whole["shards"][1] == [2, 16, 32] and whole["embedding"] == [98, 32]


def test_meshes_that_cannot_work() -> None:
    with pytest.raises(InputError, match=r"needs 64 devices, found \d+ \(cpu\); lower mesh"):
        make_mesh(8, 8)
    config = CASES["grouped"][0]
    shape = jax.sharding.AbstractMesh((1, 3), ("data", "tensor"))
    with pytest.raises(InputError, match=r"mesh\.tensor=3 does not divide num_attention_heads=4"):
        check_mesh(config, shape)
    with pytest.raises(InputError, match=r"mesh\.tensor=4 does not divide intermediate_size=50"):
        check_mesh(ModelConfig(96, 32, 50, 2, 4, 4, 8), jax.sharding.AbstractMesh((1, 4), ("data", "tensor")))
    with pytest.raises(InputError, match="neither divides num_key_value_heads=4"):
        check_mesh(
            ModelConfig(96, 32, 48, 2, 12, 4, 8), jax.sharding.AbstractMesh((1, 6), ("data", "tensor"))
        )
    with pytest.raises(InputError, match=r"mesh\.tensor=4 cannot split the fused qkv_proj of phi3 models"):
        check_mesh(
            ModelConfig.from_fields(FAMILIES["phi3"]), jax.sharding.AbstractMesh((1, 4), ("data", "tensor"))
        )


def test_shardings_have_the_tree_of_what_they_place() -> None:
    for config, _, _ in CASES.values():
        params = jax.eval_shape(partial(init_params, config), jax.random.key(0))
        placed = param_shardings(config, make_mesh())
        assert jax.tree.structure(params) == jax.tree.structure(placed)


def main(folder: Path, names: Sequence[str]) -> None:
    found = {}
    for name in names:
        config, meshes, changes = CASES[name]
        found[name] = [compute(folder / name, config, changes, *mesh) for mesh in ((1, 1), *meshes)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
