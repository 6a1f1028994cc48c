"""The kernel for trees and whole training steps, compiled for described NVIDIA cards; nothing runs.

Needs JAX's CUDA plugin (`jora-raft[gpu]`), but neither driver nor card.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jora_core.architecture.model_config import ModelConfig
from jora_core.model.attention_slots import Slots
from jora_core.model.kernels.tree_attention import plan_trees, tree_attention
from jora_core.model.projections import slice_rows
from jora_core.parameters.quantization import BLOCK
from jora_core.planning.compile_step import StepMemory, compile_step
from jora_core.planning.compile_target import (
    CUDA_OPTIONS,
    DESCRIBED_CARDS,
    Target,
    cuda_plugin,
    described_mesh,
)
from jora_core.planning.gpu_launches import Thunk, kernels, read_thunks
from jora_core.specs.planning import MemorySpec

pytestmark = [
    pytest.mark.skipif(cuda_plugin() is None, reason="needs JAX's CUDA plugin: jora-raft[gpu]"),
    pytest.mark.timeout(900),
]
KERNELS = {"tree_attention_output", "tree_attention_d_q", "tree_attention_d_kv"}
# Head width, type, soft-cap, windows.
HEADS = [
    (64, "bfloat16", None, (0,)),
    (96, "bfloat16", None, (2048,)),
    (128, "bfloat16", None, (0,)),
    (128, "bfloat16", 30.0, (0, 512)),
    (256, "bfloat16", 50.0, (0, 512)),
    (64, "float32", None, (0,)),
    (128, "float32", 30.0, (512,)),
    (256, "float32", 50.0, (0, 512)),
]
# Bytes of a thread that do not fit into registers, in bfloat16. The tiles are not chosen for float32, where
# up to 18 KB do not (heads of 64 on an A100): slow, not wrong.
MOST_SPILLED = 128
LENGTH = 2048


@pytest.fixture(autouse=True)
def optimized() -> Iterator[None]:
    """Programs as users get them; the suite turns most optimizations off."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def compile_passes(
    card: str, head: tuple[int, str, float | None, tuple[int, ...]], dump: Path
) -> tuple[str, list[Thunk]]:
    """Compile both passes: the program's text and its thunks."""
    width, dtype, softcap, windows = head
    mesh = described_mesh(card)

    def shape(*axes: int, of: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, of, sharding=NamedSharding(mesh, PartitionSpec()))

    def both(q: Any, k: Any, v: Any, grad: Any, slots: Slots, window: Any) -> Any:
        plan = plan_trees(slots, width, dtype, windows)
        how = {"scale": width**-0.5, "softcap": softcap, "window": window}
        out, back = jax.vjp(lambda *x: tree_attention(*x, plan, **how), q, k, v)
        return out, back(grad)

    q, k = shape(1, LENGTH, 4, width), shape(1, LENGTH, 2, width)
    ids = shape(1, LENGTH, of=jnp.int32)
    options = {**CUDA_OPTIONS, "xla_dump_to": str(dump), "xla_dump_hlo_as_text": True}
    with jax.set_mesh(mesh):
        lowered = jax.jit(both).lower(q, k, k, q, Slots(ids, ids), shape(of=jnp.int32))
        text = lowered.compile(compiler_options=options).as_text()
    assert text is not None
    return text, read_thunks(dump)


def squares(text: str, length: int) -> set[str]:
    """Shapes with two axes as long as a row, or longer."""
    found = set(re.findall(r"\b\w+\[([\d,]+)\]", text))
    return {dims for dims in found if sum(int(n) >= length for n in dims.split(",")) > 1}


def test_squares_are_seen() -> None:
    assert squares("f32[1,2,64,64]{3,2,1,0} bf16[64,63] pred[65,64]", 64) == {"1,2,64,64", "65,64"}


@pytest.mark.parametrize("card", list(DESCRIBED_CARDS))
@pytest.mark.parametrize(
    "head", [pytest.param(h, marks=() if h == HEADS[2] else pytest.mark.slow, id=str(h[:3])) for h in HEADS]
)
def test_kernels_fit_a_card(card: str, head: tuple[Any, ...], tmp_path: Path) -> None:
    """The three kernels are there, within shared memory and registers, and no array is as wide as a row."""
    text, thunks = compile_passes(card, head, tmp_path)
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3
    assert squares(text, LENGTH) == set()
    launched = {thunk.name: thunk for thunk in kernels(thunks) if thunk.name.startswith("tree_attention")}
    assert set(launched) == KERNELS
    limit = re.search(r"shared_memory_per_block_optin: (\d+)", DESCRIBED_CARDS[card])
    assert limit is not None
    for thunk in launched.values():
        assert 0 < thunk.shared_memory <= int(limit[1])
    spilled = registers(tmp_path)
    assert set(spilled) == KERNELS
    assert head[1] == "float32" or max(spilled.values()) <= MOST_SPILLED, spilled


def registers(dump: Path) -> dict[str, int]:
    """Bytes that each kernel's threads spill from registers, as NVIDIA's assembler says."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    found = [tool for place in places for tool in place.glob("*/bin/ptxas")]
    assert found, "XLA compiled, so its assembler should be there: nvidia-cuda-nvcc of the extra gpu"
    spilled = {}
    for file in dump.glob("*.ptx"):
        target = re.search(r"\.target (\w+)", file.read_text())
        assert target is not None
        command = [found[0], "-v", f"-arch={target[1]}", file, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        for name, rest in re.findall(r"entry function '(\w+)'(.*?)(?=entry function|\Z)", said, re.DOTALL):
            spill = re.search(r"(\d+) bytes spill stores", rest)
            if name in KERNELS and spill:
                spilled[name] = int(spill[1])
    return spilled


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 320,
    "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "vocab_size": 1024, "max_position_embeddings": 4096, "head_dim": 64,
}  # fmt: skip
GEMMA2 = {
    **LLAMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "sliding_window": 512,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "hidden_act": None, "num_key_value_heads": 1,
}  # fmt: skip
MISTRAL = {
    **LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 128,
    "sliding_window": 512,
}  # fmt: skip
# All widths, also of q, k and v as one product, are below the length of a row.
STEPS = [
    (LLAMA, {}),
    (LLAMA, {"remat": "none"}),
    (LLAMA, {"quantization": "int8"}),
    (LLAMA, {"quantization": "int8", "remat": "none"}),
    (LLAMA, {"quantization": "nf4"}),
    (LLAMA, {"quantization": "nf4", "remat": "none"}),
    (LLAMA, {"trainable": "all"}),
    (LLAMA, {"dtype": "float32", "remat": "dots"}),
    (LLAMA, {"mesh": {"tensor": 2}}),
    (GEMMA2, {"remat": "attention"}),
    (MISTRAL, {"remat": "offload"}),
]


def compiled_step(config: dict[str, Any], settings: dict[str, Any], folder: Path) -> StepMemory:
    (folder / "config.json").write_text(json.dumps(config))
    spec = MemorySpec.model_validate(
        {"model": folder, "output_dir": folder, "seq_len": LENGTH, "target": "cuda", **settings}
    )
    mesh = described_mesh("h100", spec.mesh.data, spec.mesh.tensor)
    target = Target("cuda", "H100", mesh, dict(CUDA_OPTIONS))
    return compile_step(target, ModelConfig.from_hf(folder), spec, LENGTH)


def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A buffer's shape as that of a weight: without axes of one, and with the blocks of NF4 as one axis."""
    axes = tuple(axis for axis in shape if axis > 1)
    return (*axes[:-2], axes[-2] * axes[-1]) if len(axes) == 3 and axes[-1] == BLOCK else axes


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        pytest.param(c, s, marks=() if "quantization" in s else pytest.mark.slow,
                     id=f"{c['model_type']}-{'-'.join(map(str, s.values()))}")
        for c, s in STEPS
    ],
)  # fmt: skip
def test_no_step_holds_scores(config: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """Of every setting: attention is the kernel, no array is T x T, and no base is dequantized as a whole."""
    step = compiled_step(config, settings, tmp_path)
    names = [made.name for made in step.program.named.values() if "tree_attention" in made.op_name]
    assert names, "the step has the kernel"
    wide = [b for b in step.heap.buffers if sum(axis >= LENGTH for axis in b.shape) > 1]
    assert wide == []
    if "quantization" in settings:
        # Never the widened weights of all layers.
        layers = config["num_hidden_layers"]
        stacks = [b for b in step.heap.buffers if len(b.shape) == 3 and b.shape[0] == layers]
        assert [b for b in stacks if min(b.shape[1:]) >= 128 and b.shape[1] < LENGTH] == []
        # Nor one projection: products widen codes of 8 bits as they read them, and slices of those of 4.
        width, hidden = config["hidden_size"], config["intermediate_size"]
        heads, keys = (config[f"num_{of}_heads"] * config["head_dim"] for of in ("attention", "key_value"))
        sizes = {(hidden, width), (width, hidden), (heads, width), (width, heads), (keys, width)}
        found = {(b.dtype, matrix(b.shape)) for b in step.heap.buffers}
        whole = {dtype for dtype, shape in found if shape in sizes}
        if settings["quantization"] == "int8":
            assert whole == {"s8"}, "the codes of a layer are seen by these shapes"
        else:
            slices = {(slice_rows(*size), size[1]) for size in sizes}
            assert ("bf16", (hidden // 2, width)) in found, "a slice of a projection is seen by its shape"
            assert not slices & sizes and not whole
