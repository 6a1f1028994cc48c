"""The choice between cuDNN's attention, the kernel for trees and blockwise attention: all give the same.

Where there is no GPU, JAX's own plain attention stands in for cuDNN's kernel, called with the same arguments,
the kernel for trees runs in interpret mode, and the calls of both are looked for in programs that are
lowered for CUDA and never run.
This file is also the program that a test runs in a process of its own, with four virtual devices.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import Mesh

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.model import cudnn_attention
from jora_core.model.answer_loss import batch_loss
from jora_core.model.attention_slots import Slots
from jora_core.model.blockwise_attention import blockwise_attention
from jora_core.model.cudnn_attention import SelfAttention, flash_applies, plain_rows, self_attention
from jora_core.model.kernels.tree_attention import plan_trees
from jora_core.model.rematerialization import KEPT_ATTENTION
from jora_core.parallel.collectives import per_device
from jora_core.parallel.mesh import make_mesh
from jora_core.parallel.placements import adapter_shardings, batch_sharding, param_shardings, replicated
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.specs.lora import LoraSpec
from jora_core.training.train_step import BATCH_ARRAYS
from tests.jora_core.trees import until_of

AMPERE = (8, 0)
HEADS, KV_HEADS, WIDTH, LENGTH = 4, 2, 8, 192
SCALE = 0.3
TREE_KERNEL = "@__gpu$xla.gpu.triton("

jax_attention = jax.nn.dot_product_attention


def stand_in(factor: float, *args: Any, **kwargs: Any) -> jax.Array:
    """JAX's plain attention, called as cuDNN's, times a factor that betrays who was called."""
    assert kwargs.pop("implementation") == "cudnn"
    return factor * jax_attention(*args, **kwargs, implementation="xla")


def as_on_gpu(factor: float = 1.0) -> pytest.MonkeyPatch:
    """This process as if it had a GPU, with a stand-in for cuDNN that takes float32; undo() ends it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(cudnn_attention, "cuda_capability", lambda: AMPERE)
    patch.setattr(cudnn_attention, "TYPES", ("float32",))
    patch.setattr(jax.nn, "dot_product_attention", partial(stand_in, factor))
    patch.setattr(cudnn_attention, "plan_trees", partial(plan_trees, interpret=True))
    return patch


@pytest.fixture()
def gpu() -> Iterator[Callable[..., None]]:
    patches = []
    yield lambda *args: patches.append(as_on_gpu(*args))
    for patch in patches:
        patch.undo()


def rows(*examples: tuple[int, ...], suffix: int = 0) -> Slots:
    """A row of slots per tuple of example lengths; the first ends in two suffixes of `suffix` slots each."""
    segments, positions, suffixes = (np.zeros((len(examples), LENGTH), np.int32) for _ in range(3))
    for row, lengths in enumerate(examples):
        start = 0
        for number, length in enumerate(lengths, 1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    suffixes[0, LENGTH - 2 * suffix :], suffixes[0, LENGTH - suffix :] = 1, 2
    return Slots(jnp.asarray(until_of(segments, suffixes)), jnp.asarray(positions))


def attend_with(slots: Slots, **how: Any) -> SelfAttention:
    """The function under test for the heads of this file."""
    return self_attention(slots, **{"width": WIDTH, "dtype": jnp.float32, "scale": SCALE, **how})


PLAIN = rows((LENGTH,), (100,), ())
PACKED = rows((70, 90), (100,), ())


def test_which_rows_are_plain() -> None:
    assert plain_rows(PLAIN)
    assert not plain_rows(PACKED)
    assert not plain_rows(rows((LENGTH,), suffix=5))
    gap = PLAIN.replace(until=PLAIN.until.at[0, 7].set(0))  # type: ignore[attr-defined]
    assert not plain_rows(gap)
    late = PLAIN.replace(until=PLAIN.until.at[2, 7].set(8))  # type: ignore[attr-defined]
    assert not plain_rows(late), "padding in front"
    jump = PLAIN.replace(positions=PLAIN.positions.at[1, 7:].add(1))  # type: ignore[attr-defined]
    assert not plain_rows(jump), "slots would not count as positions do, in a window"


@pytest.mark.parametrize(
    ("applies", "changes"),
    [
        (True, {}),
        (True, {"dtype": jnp.float16}),
        (True, {"window": 256}),
        (True, {"capability": (9, 0)}),
        (True, {"q_shape": (2, 512, 4, 128), "k_shape": (2, 512, 1, 128)}),
        (False, {"dtype": jnp.float32}),
        (False, {"softcap": 50.0}),
        (False, {"window": None}),
        (False, {"capability": None}),
        (False, {"capability": (7, 5)}),
        (False, {"q_shape": (2, 520, 4, 64), "k_shape": (2, 520, 2, 64)}),
        (False, {"q_shape": (2, 512, 4, 256), "k_shape": (2, 512, 2, 256)}),
        (False, {"q_shape": (2, 512, 4, 60), "k_shape": (2, 512, 2, 60)}),
        (False, {"q_shape": (2, 64, 4, 64)}),
        (False, {"k_shape": (2, 512, 3, 64)}),
    ],
)
def test_static_rule(applies: bool, changes: dict[str, Any]) -> None:
    call: dict[str, Any] = {
        "q_shape": (2, 512, 4, 64),
        "k_shape": (2, 512, 2, 64),
        "dtype": jnp.bfloat16,
        "softcap": None,
        "window": 0,
        "capability": AMPERE,
    }
    assert flash_applies(**(call | changes)) is applies


def test_no_cuda_device_no_capability() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    assert cudnn_attention.cuda_capability() is None


def arrays(dtype: Any = jnp.float32, batch: int = 3, width: int = WIDTH) -> tuple[jax.Array, ...]:
    """q, k, v and the gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return tuple(
        jax.random.normal(key, (batch, LENGTH, n, width), dtype) for key, n in zip(keys, heads, strict=True)
    )


def passes(attend: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """Output without that of padding, and the gradients of q, k and v."""

    @jax.jit
    def both(q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array, slots: Slots) -> Any:
        real = (slots.until > 0)[:, :, None, None]
        out, back = jax.vjp(lambda q, k, v: attend(slots, q, k, v), q, k, v)
        return jnp.where(real, out, 0), *back(jnp.where(real, grad, 0)), jnp.isfinite(out).all()

    return both


@pytest.mark.parametrize("window", [0, 50])
def test_both_paths_give_the_same(gpu: Callable[..., None], window: int) -> None:
    gpu()
    ours = passes(lambda slots, q, k, v: attend_with(slots, windows=(window,))(q, k, v, jnp.int32(window)))
    theirs = passes(
        lambda slots, q, k, v: blockwise_attention(q, k, v, slots, scale=SCALE, window=window, block=64)
    )
    for slots in (PLAIN, PACKED):
        for got, expected in zip(ours(*arrays(), slots), theirs(*arrays(), slots), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-5)


def test_the_choice_is_per_batch_and_the_same_in_both_directions(gpu: Callable[..., None]) -> None:
    """A stand-in that gives twice too much: plain rows show it, packed rows do not."""
    gpu(2.0)
    both = passes(lambda slots, q, k, v: attend_with(slots)(q, k, v, 0))
    blocks = passes(lambda slots, q, k, v: blockwise_attention(q, k, v, slots, scale=SCALE))
    for slots, factor in ((PLAIN, 2), (PACKED, 1)):
        for got, expected in zip(both(*arrays(), slots)[:4], blocks(*arrays(), slots)[:4], strict=True):
            np.testing.assert_allclose(got, factor * expected, atol=5e-5)


def jaxpr_of(attend: Callable[..., jax.Array], width: int = WIDTH) -> str:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays(width=width)[:3]]
    # Functions of derivative rules are printed with their addresses.
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v))(*shapes)))


@pytest.mark.parametrize("how", [{"softcap": 5.0}, {"windows": (0, 50)}])
def test_the_kernel_for_trees_takes_what_cudnn_does_not(
    gpu: Callable[..., None], how: dict[str, Any]
) -> None:
    gpu(2.0)
    found = jaxpr_of(partial(attend_with(PLAIN, **how), layer_window=0))
    assert "tree_attention_output" in found and "cond[" not in found


@pytest.mark.parametrize("how", [{"choice": "blockwise"}, {"width": 264}])
def test_blocks_where_no_kernel_applies(gpu: Callable[..., None], how: dict[str, Any]) -> None:
    gpu(2.0)
    width = how.get("width", WIDTH)
    found = jaxpr_of(partial(attend_with(PLAIN, **how), layer_window=0), width)
    assert found == jaxpr_of(partial(blockwise_attention, slots=PLAIN, scale=SCALE), width)


def test_blocks_without_a_gpu() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    found = jaxpr_of(partial(attend_with(PACKED, softcap=5.0), layer_window=50))
    assert found == jaxpr_of(partial(blockwise_attention, slots=PACKED, scale=SCALE, softcap=5.0, window=50))


def test_padding_gives_no_gradient_whatever_comes_back(gpu: Callable[..., None]) -> None:
    gpu()
    q, k, v, grad = arrays()
    back = jax.vjp(lambda q, k, v: attend_with(PLAIN)(q, k, v, 0), q, k, v)[1]
    for part in back(grad):
        np.testing.assert_array_equal(part[1, 100:], 0)
        np.testing.assert_array_equal(part[2], 0)
        assert jnp.abs(part[1, :100]).max() > 0


def test_recomputation_keeps_the_output(gpu: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Under a policy that keeps attention, its two results are all that is kept."""
    gpu()
    attend = attend_with(PLAIN)
    policy = jax.checkpoint_policies.save_only_these_names(KEPT_ATTENTION)
    step = jax.checkpoint(lambda q, k, v: (attend(q, k, v, 0) ** 2).sum(), policy=policy)
    print_saved_residuals(step, *arrays()[:3])
    kept = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    named = [line for line in kept if f"'{KEPT_ATTENTION}'" in line]
    assert len(named) == 2
    assert all("constant" in line for line in kept if line not in named), kept


def lowered_for_cuda(monkeypatch: pytest.MonkeyPatch, dtype: Any, **how: Any) -> str:
    """StableHLO of both passes for an NVIDIA GPU that need not be here."""
    monkeypatch.setattr(cudnn_attention, "cuda_capability", lambda: AMPERE)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, slots: Slots) -> jax.Array:
        attend = self_attention(slots, **{"width": 64, "dtype": dtype, "scale": SCALE, **how})
        return attend(q, k, v, 0).astype(jnp.float32).sum()

    inputs = [jax.ShapeDtypeStruct(x.shape, dtype) for x in arrays(width=64)[:3]]
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs, PLAIN)
    return quoted(traced.lower(lowering_platforms=("cuda",)).as_text())


def quoted(text: str) -> str:
    """StableHLO with the quotes of the calls' settings as they were."""
    return text.replace("\\22", '"')


def test_the_program_for_cuda_calls_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    text = lowered_for_cuda(monkeypatch, jnp.bfloat16)
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert "CAUSAL" in text and "PADDING" not in text
    assert text.count("stablehlo.case") >= 2 and text.count(TREE_KERNEL) == 3, "has the other path too"
    assert "stablehlo.exponential" not in text and "stablehlo.while" not in text, "no attention by XLA"
    assert '"sliding_window_length": 32' in lowered_for_cuda(monkeypatch, jnp.bfloat16, windows=(32,))


@pytest.mark.parametrize(
    ("dtype", "how", "kernels"),
    [
        (jnp.float32, {}, 3),
        (jnp.bfloat16, {"softcap": 30.0}, 3),
        (jnp.bfloat16, {"windows": (0, 32)}, 3),
        (jnp.bfloat16, {"choice": "trees"}, 3),
        (jnp.bfloat16, {"choice": "blockwise"}, 0),
    ],
)
def test_other_programs_for_cuda_do_not(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, how: Any, kernels: int
) -> None:
    text = lowered_for_cuda(monkeypatch, dtype, **how)
    assert "__cudnn" not in text and text.count(TREE_KERNEL) == kernels


@pytest.mark.gpu
@pytest.mark.skipif(cudnn_attention.cuda_capability() is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("width", [64, 96, 128, 256])
def test_kernels_equal_blockwise_on_a_gpu(window: int, width: int) -> None:
    """cuDNN's kernel on plain rows, the kernel for trees on packed ones."""
    scale = width**-0.5
    how = {"width": width, "dtype": jnp.bfloat16, "scale": scale, "windows": (window,)}
    ours = passes(lambda slots, q, k, v: self_attention(slots, **how)(q, k, v, window))
    blocks = passes(lambda slots, q, k, v: blockwise_attention(q, k, v, slots, scale=scale, window=window))
    half = arrays(jnp.bfloat16, width=width)
    whole = [x.astype(jnp.float32) for x in half]
    for slots in (PLAIN, PACKED):
        found, same, exact = ours(*half, slots), blocks(*half, slots), blocks(*whole, slots)
        for got, near, expected in zip(found, same, exact, strict=True):
            got, near, expected = (np.asarray(x, np.float32) for x in (got, near, expected))
            assert np.isfinite(got).all()
            # As close to float32 as blockwise attention in bfloat16 is, within a factor.
            assert np.abs(got - expected).max() <= 2 * np.abs(near - expected).max() + 1e-3


# Two key/value heads do not fill a tensor axis of four.
CONFIG = ModelConfig(96, 32, 48, 2, 4, 2, 8, tie_embeddings=True, initializer_range=0.2)
MESHES = ((1, 4), (2, 2))


def on_mesh(mesh: Mesh, dtype: Any = jnp.float32) -> tuple[Callable[..., Any], Any, Any]:
    """Loss and gradients of a batch, the model, and its adapter, all on one mesh."""
    adapter = init_adapter(CONFIG, LoraSpec(r=4), jax.random.key(1))
    adapter = jax.tree.map(lambda x: x + 0.05, adapter)
    places = param_shardings(CONFIG, mesh), adapter_shardings(CONFIG, adapter, mesh)
    params, adapter = jax.device_put((init_params(CONFIG, jax.random.key(0), dtype), adapter), places)

    def loss(adapter: Any, params: Any, batch: Any) -> jax.Array:
        return batch_loss(params, CONFIG, batch, adapter=adapter, dropout_key=None, remat="attention")

    batch_places = dict.fromkeys(BATCH_ARRAYS, batch_sharding(mesh))
    run = per_device(
        jax.value_and_grad(loss), mesh, (places[1], places[0], batch_places), (replicated(mesh), places[1])
    )
    return jax.jit(run), params, adapter


def batch_of(slots: Slots) -> dict[str, Any]:
    tokens = np.random.default_rng(0).integers(0, 96, (4, LENGTH), dtype=np.int32)
    return {
        "tokens": tokens,
        "until": slots.until,
        "positions": slots.positions,
        "index": np.tile(np.arange(40, 100, dtype=np.int32), (4, 1)),
        "targets": tokens[:, 41:101],
        "weights": np.ones((4, 60), np.float32),
    }


BATCHES = (
    batch_of(rows((LENGTH,), (100,), (128,), (110,))),
    batch_of(rows((50, 90), (100,), (60, 64), (50, 60))),
)


def compute(data: int, tensor: int) -> dict[str, Any]:
    """Losses and gradients of a plain and a packed batch, and greedy tokens, on one mesh."""
    mesh = make_mesh(data, tensor)
    found = []
    with jax.set_mesh(mesh):
        run, params, adapter = on_mesh(mesh)
        for batch in BATCHES:
            value, grads = run(adapter, params, batch)
            found.append([float(value), *(float((g**2).sum()) for g in jax.tree.leaves(grads))])
        prompts = [BATCHES[0]["tokens"][0, :40], BATCHES[0]["tokens"][1, :64]]
        answers = generate(
            params, CONFIG, prompts, GenerationSettings(eos_ids=(), max_new_tokens=4), adapter=adapter
        )
    return {"values": found, "tokens": [answer.tolist() for answer in answers]}


def calls_for_cuda(data: int, tensor: int) -> list[int]:
    """How often the program of one mesh, for CUDA, calls cuDNN forwards and backwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudnn_attention, "cuda_capability", lambda: AMPERE)
        patch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
        mesh = make_mesh(data, tensor)
        with jax.set_mesh(mesh):
            run, params, adapter = on_mesh(mesh, jnp.bfloat16)
            text = run.trace(adapter, params, BATCHES[0]).lower(lowering_platforms=("cuda",)).as_text()
    return [text.count("@__cudnn$fmhaSoftmax("), text.count("@__cudnn$fmhaSoftmaxBackward(")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_four_devices_as_blockwise_on_one() -> None:
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["calls"] == [[2, 1]] * len(MESHES), "the backward pass begins with another forward pass"
    expected, *others = found["results"]
    assert expected["values"][0][0] != pytest.approx(expected["values"][1][0], rel=1e-3), "packing matters"
    for found in others:
        np.testing.assert_allclose(found["values"], expected["values"], rtol=1e-4)
        assert found["tokens"] == expected["tokens"]


if __name__ == "__main__":
    calls = [calls_for_cuda(*mesh) for mesh in MESHES]
    results = [compute(1, 1)]
    as_on_gpu()
    print(json.dumps({"calls": calls, "results": results + [compute(*mesh) for mesh in MESHES]}))
