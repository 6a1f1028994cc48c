"""Four virtual devices compute what one does, and meshes that cannot work are refused.

This file is also the program that the test runs in a process of its own: the number of virtual devices is
fixed when JAX starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.config import ModelConfig
from jora_core.errors import InputError
from jora_core.generate import generate
from jora_core.loading import load_params
from jora_core.lora import Adapter, init_adapter
from jora_core.model import Params, forward, init_params, unembed
from jora_core.sharding import adapter_shardings, check_mesh, make_mesh, param_shardings
from jora_core.spec import LORA_TARGETS, LoraSpec
from jora_core.weights import save_params

MESHES = {"grouped": ((1, 1), (1, 4), (2, 2), (4, 1)), "replicated": ((1, 1), (1, 4))}
# Two key/value heads do not fill a tensor axis of four; a vocabulary of 98 does not divide by four.
CONFIGS = {
    "grouped": ModelConfig(96, 32, 48, 2, 4, 4, 8, tie_embeddings=True, initializer_range=0.2),
    "replicated": ModelConfig(98, 32, 48, 2, 4, 2, 8, initializer_range=0.2),
}


@partial(jax.jit, static_argnames="config")
def loss_and_grads(trees: tuple[Params, Adapter], config: ModelConfig, tokens: jax.Array) -> Any:
    def loss(trees: tuple[Params, Adapter]) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        one = jnp.ones_like(tokens)
        key = jax.random.key(3)
        params, adapter = trees
        hidden = forward(
            params, config, tokens, positions, one, 0 * one, adapter=adapter, dropout_key=key, remat="full"
        )
        values = jax.nn.log_softmax(unembed(params, config, hidden))
        return -jnp.take_along_axis(values[:, :-1], tokens[:, 1:, None], axis=-1).mean()

    value, grads = jax.value_and_grad(loss)(trees)
    return value, jax.tree.map(lambda g: (g**2).sum(), grads)


def compute(folder: Path, config: ModelConfig, data: int, tensor: int) -> dict[str, Any]:
    """Loss, squared norms of all gradients, and greedy tokens on one mesh."""
    mesh = make_mesh(data, tensor)
    tokens = np.random.default_rng(0).integers(0, 96, (4, 16), dtype=np.int32)
    spec = LoraSpec.model_validate({"r": 4, "target_modules": list(LORA_TARGETS)})
    with jax.set_mesh(mesh):
        params = load_params(folder, config, jnp.float32, mesh)
        adapter = init_adapter(config, spec, jax.random.key(1))
        adapter = jax.tree.map(lambda x: x + 0.05, adapter)
        adapter = jax.device_put(adapter, adapter_shardings(config, adapter, mesh))
        value, norms = loss_and_grads((params, adapter), config, tokens)
        prompts = [tokens[0, :3], tokens[1, :9], tokens[2, :5], tokens[3]]
        answers = generate(params, config, prompts, eos_ids=(), max_new_tokens=5, adapter=adapter)
    shards = {
        name: getattr(params.layers, name).addressable_shards[0].data.shape
        for name in ("q_proj", "k_proj", "down_proj")
    }
    return {
        "loss": float(value),
        "norms": [float(x) for x in jax.tree.leaves(norms)],
        "tokens": [answer.tolist() for answer in answers],
        "shards": shards,
        "embedding": params.embedding.addressable_shards[0].data.shape,
    }


# Six meshes are compiled and run: half a minute on two idle cores, much more where others use them.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        save_params(jax.jit(partial(init_params, config))(jax.random.key(0)), config, folder / name)
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=env, capture_output=True, text=True, timeout=880
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_mesh_computes_the_same(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    one, *others = results[name]
    for found in others:
        assert found["loss"] == pytest.approx(one["loss"], rel=1e-5)
        np.testing.assert_allclose(found["norms"], one["norms"], rtol=1e-3, atol=1e-9)
        assert found["tokens"] == one["tokens"]


def test_each_device_holds_its_part(results: dict[str, list[dict[str, Any]]]) -> None:
    _, tensor4, both, data4 = results["grouped"]
    assert tensor4["shards"] == {"q_proj": [2, 8, 32], "k_proj": [2, 8, 32], "down_proj": [2, 32, 12]}
    assert both["shards"]["q_proj"] == [2, 16, 32] and data4["shards"]["q_proj"] == [2, 32, 32]
    assert tensor4["embedding"] == [24, 32]
    # Fewer key/value heads than shards, and an odd vocabulary, are held whole.
    whole = results["replicated"][1]
    assert whole["shards"]["k_proj"] == [2, 16, 32] and whole["embedding"] == [98, 32]


def test_meshes_that_cannot_work() -> None:
    with pytest.raises(InputError, match=r"needs 64 devices, found \d+ \(cpu\); lower mesh"):
        make_mesh(8, 8)
    shape = jax.sharding.AbstractMesh((1, 3), ("data", "tensor"))
    with pytest.raises(InputError, match=r"mesh\.tensor=3 does not divide num_attention_heads=4"):
        check_mesh(CONFIGS["grouped"], shape)
    with pytest.raises(InputError, match=r"mesh\.tensor=4 does not divide intermediate_size=50"):
        check_mesh(ModelConfig(96, 32, 50, 2, 4, 4, 8), jax.sharding.AbstractMesh((1, 4), ("data", "tensor")))
    with pytest.raises(InputError, match="neither divides num_key_value_heads=4"):
        check_mesh(
            ModelConfig(96, 32, 48, 2, 12, 4, 8), jax.sharding.AbstractMesh((1, 6), ("data", "tensor"))
        )


def test_shardings_have_the_tree_of_what_they_place() -> None:
    for config in CONFIGS.values():
        params = jax.eval_shape(partial(init_params, config), jax.random.key(0))
        placed = param_shardings(config, make_mesh())
        assert jax.tree.structure(params) == jax.tree.structure(placed)


def main(folder: Path) -> None:
    found = {
        name: [compute(folder / name, config, *mesh) for mesh in MESHES[name]]
        for name, config in CONFIGS.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
