"""What the host holds while a large model is read; codes made on the way in are those of the whole model, on
every mesh."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.architecture.tensor_names import PROJECTIONS
from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.weights.load_params import load_params
from jora_core.weights.safetensors_reader import TensorFile
from jora_core.weights.tensor_store import write_tensors

# 1.07 GB in bfloat16, 131 MB of it the embedding and as much the head.
LARGE = ModelConfig(32000, 2048, 5632, 9, 16, 4, 128)
SHARDS = 5

_MEASURE = """
import json, re, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jora_core.architecture.model_config import ModelConfig
from jora_core.weights.load_params import load_params
from jora_core.parallel.mesh import make_mesh

def status(name):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(name + r":\\s+(\\d+)", text).group(1))

folder, tensor, quantization = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config, mesh = ModelConfig.from_hf(folder), make_mesh(1, tensor)
jax.block_until_ready(jax.jit(lambda: jnp.ones(8) @ jnp.ones(8))())
Path("/proc/self/clear_refs").write_text("5")  # peak from here on
before = status("VmRSS")
params = jax.block_until_ready(load_params(folder, config, jnp.bfloat16, mesh, quantization))
peak = status("VmHWM")
held = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
sums = [float(jnp.sum(x.astype(jnp.float32))) for x in (params.embedding[::997], params.layers.mlp_norm)]
print(json.dumps({"host": peak - before - held, "held": held, "sums": sums}))
"""

_MESHES = """
import sys
import jax, numpy as np
from jora_core.architecture.model_config import ModelConfig
from jora_core.weights.load_params import load_params
from jora_core.parameters.quantization import dequantize, quantize_params
from jora_core.parallel.mesh import make_mesh

folder = sys.argv[1]
config = ModelConfig.from_hf(folder)
whole = load_params(folder, config)
for kind in ("int8", "nf4"):
    expected = jax.jit(lambda p: quantize_params(p, kind))(whole)
    for data, tensor in ((1, 1), (1, 4), (2, 2)):
        found = load_params(folder, config, mesh=make_mesh(data, tensor), quantization=kind)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b, f"{kind} {data}x{tensor} {jax.tree_util.keystr(path)}")
        down = found.layers.down_proj.codes
        assert down.addressable_shards[0].data.shape[-1] * tensor == down.shape[-1]
print("same")
"""


def run(program: str, *arguments: str) -> str:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint of 1 GB in five shards with an index; gone after the module's tests."""
    import shutil

    folder = tmp_path_factory.mktemp("large")
    block = np.random.default_rng(0).normal(size=1 << 18).astype(jnp.bfloat16)
    shapes = expected_tensors(LARGE)
    assert sum(2 * math.prod(shape) for shape in shapes.values()) > 1e9
    files = {name: f"model-{i % SHARDS + 1:05d}-of-{SHARDS:05d}.safetensors" for i, name in enumerate(shapes)}
    for file in sorted(set(files.values())):
        part = {name: np.resize(block, shapes[name]) for name in shapes if files[name] == file}
        write_tensors(folder / file, part)
    write_json(folder / "model.safetensors.index.json", {"weight_map": files})
    write_json(folder / "config.json", LARGE.to_hf())
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("tensor", "quantization"), [(1, "none"), pytest.param(4, "none", marks=pytest.mark.slow), (4, "nf4")]
)
def test_the_host_holds_a_slice_not_a_model(large: Path, tensor: int, quantization: str) -> None:
    """1 GB from five shards: beyond what the devices hold, less than 300 MB (measured: 84, 101 and 152)."""
    found = json.loads(run(_MEASURE, str(large), str(tensor), quantization))
    assert found["held"] > (1.0e9 if quantization == "none" else 0.4e9)
    assert found["host"] < 300e6
    embedding = np.resize(np.random.default_rng(0).normal(size=1 << 18).astype(jnp.bfloat16), (32000, 2048))
    norm = embedding.reshape(-1)[:2048].astype(np.float32)
    expected = [embedding[::997].astype(np.float32).sum(), LARGE.num_layers * norm.sum()]
    np.testing.assert_allclose(found["sums"], expected, rtol=1e-3, atol=1e-2)


def test_codes_do_not_depend_on_the_mesh(tmp_path: Path) -> None:
    """Loaded slice by slice under three meshes, short last blocks too: as the whole model quantised."""
    config = ModelConfig(96, 200, 512, 3, 4, 2, 64)
    rng = np.random.default_rng(1)
    tensors = {n: rng.normal(size=s).astype(np.float16) for n, s in expected_tensors(config).items()}
    write_tensors(tmp_path / "model.safetensors", tensors)
    write_json(tmp_path / "config.json", config.to_hf())
    assert run(_MESHES, str(tmp_path)).strip() == "same"


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_the_processor_is_filled_as_programs_fill_it(
    stored: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read into place on one processor: the bits and places of the path of all other devices."""
    import jora_core.weights.load_params as loading

    config = ModelConfig(97, 24, 40, 2, 2, 1, 12, tie_embeddings=True)
    rng = np.random.default_rng(4)
    shapes = expected_tensors(config)
    tensors = {n: rng.normal(size=s).astype(jnp.dtype(stored)) for n, s in shapes.items()}
    write_tensors(tmp_path / "model.safetensors", tensors)
    monkeypatch.setattr(loading, "_CHUNK_BYTES", 7 * 24 * 4)
    found = loading.load_params(tmp_path, config, jnp.dtype(dtype))
    monkeypatch.setattr(loading._Field, "on_host", False)
    loading._programs.cache_clear()
    expected = loading.load_params(tmp_path, config, jnp.dtype(dtype))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype and one.sharding == other.sharding
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("on_host", [True, False])
def test_chunks_cover_every_row(on_host: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not divide the rows, vectors and a vocabulary included, leave the file's values."""
    import jora_core.weights.load_params as loading

    monkeypatch.setattr(loading._Field, "on_host", on_host)

    config = ModelConfig(97, 24, 40, 2, 2, 1, 12, tie_embeddings=True)
    rng = np.random.default_rng(2)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in expected_tensors(config).items()}
    write_tensors(tmp_path / "model.safetensors", tensors)
    loading._programs.cache_clear()
    monkeypatch.setattr(loading, "_CHUNK_BYTES", 7 * 24 * 4)
    params = loading.load_params(tmp_path, config)
    np.testing.assert_array_equal(params.embedding, tensors["model.embed_tokens.weight"])
    for layer in range(2):
        for field, module in (("down_proj", "mlp.down_proj"), ("attention_norm", "input_layernorm")):
            expected = tensors[f"model.layers.{layer}.{module}.weight"]
            np.testing.assert_array_equal(getattr(params.layers, field)[layer], expected)
    assert params.head is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "int32", "bool"])
def test_slices_are_those_of_the_library(tmp_path: Path, dtype: str) -> None:
    from safetensors import safe_open

    rng = np.random.default_rng(3)
    tensors = {
        "vector": rng.normal(size=7),
        "matrix": rng.normal(size=(5, 6)),
        "cube": rng.normal(size=(4, 3, 5)),
        "scalar": np.array(2.0),
        "empty": np.zeros((0, 3)),
    }
    path = tmp_path / "t.safetensors"
    write_tensors(path, {name: (10 * value).astype(jnp.dtype(dtype)) for name, value in tensors.items()})
    ours = TensorFile(path)
    cuts = {"vector": [(slice(2, 5),)], "scalar": [], "empty": []}
    cuts["matrix"] = [(slice(1, 3), slice(None)), (slice(None), slice(2, 5)), (slice(4, 5), slice(0, 1))]
    cuts["cube"] = [(slice(1, 3), slice(1, 2), slice(None)), (slice(None), slice(None), slice(1, 4))]
    with safe_open(path, "numpy") as theirs:
        for name, indices in cuts.items():
            np.testing.assert_array_equal(ours.read(name), theirs.get_tensor(name))
            for index in indices:
                np.testing.assert_array_equal(ours.read(name, index), theirs.get_slice(name)[index])


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"matrix": np.ones((64, 64), np.float32)})
    file = TensorFile(path)
    with path.open("rb+") as handle:
        handle.truncate(1000)
    with pytest.raises(InputError, match="is truncated at byte 1000"):
        file.read("matrix")


def test_projections_may_have_a_type_of_their_own(tiny_weights: Path) -> None:
    config = ModelConfig.from_hf(tiny_weights)
    exact = load_params(tiny_weights, config)
    narrow = load_params(tiny_weights, config, projection_dtype=jnp.bfloat16)
    for name, whole in vars(exact.layers).items():
        found = getattr(narrow.layers, name)
        if name in PROJECTIONS and whole is not None:
            assert found.dtype == jnp.bfloat16
            np.testing.assert_array_equal(found, whole.astype(jnp.bfloat16))
        elif whole is not None:
            assert found.dtype == jnp.float32
    assert narrow.embedding.dtype == narrow.final_norm.dtype == jnp.float32
