"""Memory plans against what a real step takes, against XLA's count of operations, and their bad inputs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.model_tensors import expected_tensors
from jora_core.planning.buffer_assignment import parse_heap
from jora_core.planning.hlo_text import collectives, parse_program, unsplit_rows
from jora_core.planning.memory_plan import longest_row
from jora_core.planning.step_flops import step_flops
from jora_core.specs.lora import LoraSpec
from tests.jora_core.family_cases import CASES

pytestmark = pytest.mark.usefixtures("real_compilation")

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
# hidden, feed-forward, layers, heads, key/value heads, vocabulary
SMALL = (512, 1408, 8, 8, 4, 8000)
WIDE = (768, 2048, 12, 12, 12, 16000)
LLAMA_70B = (8192, 28672, 80, 64, 8, 32000)
TINY = (64, 160, 4, 8, 8, 640)


def write_config(folder: Path, shape: tuple[int, ...], **more: Any) -> Path:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size")
    folder.mkdir(parents=True, exist_ok=True)
    data = LLAMA | dict(zip(names, shape, strict=True)) | {"max_position_embeddings": 4096} | more
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def activation_all_reduces(rows: list[dict[str, Any]], activation_elements: int) -> float:
    """A layer's traffic in all-reduces of one activation [B, T, D]; a gather moves half of it."""
    weights = {"all-reduce": 1.0}
    return sum(
        row["per_layer"] * weights.get(row["kind"], 0.5) * row["elements"] / activation_elements
        for row in rows
        if 2 * row["elements"] >= activation_elements
    )


def run_memory(folder: Path, **order: Any) -> subprocess.CompletedProcess[str]:
    spec = folder / "spec.json"
    settings = {"target": "host", "find_longest": False, "output_dir": str(folder / "out")}
    spec.write_text(json.dumps(settings | order))
    command = [sys.executable, "-m", "jora_core.commands.memory", "--spec", str(spec)]
    return subprocess.run(command, capture_output=True, text=True)


def plan(folder: Path, **order: Any) -> dict[str, Any]:
    done = run_memory(folder, **order)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "result.json").read_text())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's high-water mark")
@pytest.mark.parametrize(
    ("shape", "order"),
    [
        (SMALL, {"rows": 4, "seq_len": 512, "remat": "full"}),
        # Slow: each takes as long as all other tests of the folder.
        pytest.param(SMALL, {"rows": 1, "seq_len": 1024, "remat": "none"}, marks=pytest.mark.slow),
        pytest.param(WIDE, {"rows": 1, "seq_len": 384, "remat": "full"}, marks=pytest.mark.slow),
    ],
)
def test_prediction_is_what_a_real_step_takes(
    tmp_path: Path, shape: tuple[int, ...], order: dict[str, Any]
) -> None:
    order = order | {
        "model": str(write_config(tmp_path / "model", shape)),
        "lora": {"r": 16},
        "answer_tokens": 64,
    }
    file = tmp_path / "order.json"
    file.write_text(json.dumps(order))
    script = Path(__file__).with_name("measure_peak.py")
    done = subprocess.run([sys.executable, str(script), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["grew"]
    found = plan(tmp_path, **order, dtype="float32", target="cpu")
    assert found["bytes_per_device"]["total"] == pytest.approx(measured, rel=0.15)


def test_70b_over_four_devices(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", LLAMA_70B)
    found = plan(tmp_path, model=str(model), mesh={"tensor": 4}, seq_len=512, card=40)
    sizes = found["bytes_per_device"]
    # Each device has a quarter of 69 G weights of two bytes; norms, on all of them, are the rest.
    parameters = 80 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672) + 2 * 32000 * 8192
    assert sizes["weights"] == 2 * parameters // 4 + 2 * 8192 * (2 * 80 + 1)
    assert sizes["total"] == sum(size for kind, size in sizes.items() if kind != "total")
    # Beside the weights there are residuals and one layer's arrays, no second copy of anything.
    assert sizes["total"] < 1.1 * sizes["weights"]
    assert [card["gb"] for card in found["cards"] if card["fits"]] == [40, 48, 80, 141]
    assert found["change"] == []


@pytest.mark.parametrize("case", ["olmo2", pytest.param("phi3", marks=pytest.mark.slow)])
def test_weights_of_a_family_are_those_of_its_table(tmp_path: Path, case: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CASES[case]))
    found = plan(tmp_path, model=str(model), seq_len=64, lora={"target_modules": "all-linear"})
    shapes = expected_tensors(ModelConfig.from_hf(model)).values()
    assert found["bytes_per_device"]["weights"] == 2 * sum(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.51), ("nf4", 0.30)])
def test_a_quantised_base_is_smaller_by_its_codes(tmp_path: Path, quantization: str, share: float) -> None:
    model = write_config(tmp_path / "model", (*TINY[:5], 64))
    order = {"model": str(model), "seq_len": 64}
    whole = plan(tmp_path, **order)["bytes_per_device"]["weights"]
    codes = plan(tmp_path, **order, quantization=quantization)["bytes_per_device"]["weights"]
    assert codes / whole == pytest.approx(share, abs=0.06)


def test_what_to_change_is_said(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", LLAMA_70B)
    found = plan(tmp_path, model=str(model), mesh={"tensor": 4}, seq_len=512, card=24)
    assert any(line.startswith("mesh.tensor=8") for line in found["change"])


def test_tensor_parallel_step_keeps_the_vocabulary_split(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", TINY)
    found = plan(
        tmp_path, model=str(model), mesh={"tensor": 4}, seq_len=256, answer_tokens=256, dtype="float32"
    )
    assert found["unsplit_logits"] == []
    alone = plan(tmp_path, model=str(model), seq_len=256, answer_tokens=256, dtype="float32")
    assert alone["bytes_per_device"]["weights"] > 3.5 * found["bytes_per_device"]["weights"]
    assert {row["kind"] for row in found["collectives"]} >= {"all-gather", "reduce-scatter"}
    assert alone["collectives"] == []
    per_layer = activation_all_reduces(found["collectives"], 256 * TINY[0])
    # Two gathers and two scatters each way, and two gathers for what `full` recomputes; the adapter's small
    # sums come on top, at rank 16 of a width of 64.
    assert 4 < per_layer < 8


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", TINY)
    cases = {
        "does not divide num_attention_heads=8": {"model": str(model), "mesh": {"tensor": 3}},
        "expected a config.json": {"model": str(tmp_path / "spec.json")},
        "does not exist": {"model": str(tmp_path / "nowhere")},
        "card": {"model": str(model), "card": 30},
    }
    for message, order in cases.items():
        done = run_memory(tmp_path, **order)
        assert done.returncode == 2
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0]


def test_longest_row_is_seen_to_fit() -> None:
    asked = []

    def linear(length: int) -> int:
        asked.append(length)
        return 10_000 + 7 * length

    assert longest_row(80_000, {512: linear(512)}, linear, 1 << 20) == pytest.approx(10_000, rel=0.03)
    assert len(asked) <= 4
    assert longest_row(5_000, {512: 13_584}, linear, 1 << 20) is None
    found = longest_row(10**6, {512: 512**2}, lambda length: length**2, 1 << 20)
    assert found is not None and 900 <= found <= 1000


@pytest.mark.parametrize("first", [64, 512, 2048, 4096])
def test_the_longest_row_ends_with_the_positions(first: int) -> None:
    assert longest_row(10**9, {first: 10 * first}, lambda length: 10 * length, 2048) == 2048
    # Where the card is the limit, a row of the configuration beyond the positions changes nothing.
    found = longest_row(6_400, {first: 10 * first}, lambda length: 10 * length, 2048)
    assert found is not None and 512 <= found <= 640


def test_flops_equal_xlas_count_where_it_has_no_loops(tmp_path: Path) -> None:
    import jax
    import jax.numpy as jnp

    from jora_core.model.decoder import forward
    from jora_core.parameters.initialize import init_params

    # One layer and one block of attention: XLA counts the body of a loop once, so there must be one pass.
    config = ModelConfig.from_hf(write_config(tmp_path, (128, 352, 1, 4, 2, 256)))
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    places = [jax.ShapeDtypeStruct((1, 64), jnp.int32)] * 3
    compiled = jax.jit(lambda p, *args: forward(p, config, *args)).lower(params, *places).compile()
    counted = compiled.cost_analysis()
    assert counted is not None
    theirs = counted["flops"] / 64
    lora = LoraSpec.model_validate({"r": 1, "target_modules": ["q_proj"]})
    ours = step_flops(config, lora, "none", 64, 0.0).forward
    assert ours == pytest.approx(theirs, rel=0.08)


def test_reading_a_program() -> None:
    text = """HloModule m, num_partitions=4
%body (p: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %p = (s32[], f32[2,8]{1,0}) parameter(0)
  %x = f32[2,8]{1,0} get-tuple-element(%p), index=1
  %sum = f32[2,8]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
  %part = f32[2,2]{1,0} reduce-scatter(%sum), replica_groups={{0,1,2,3}}, dimensions={1}, to_apply=%add
  %whole = f32[2,8]{1,0} all-gather(%part), replica_groups={}, dimensions={1}
  %alone = f32[2,8]{1,0} all-reduce(%whole), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %r = (s32[], f32[2,8]{1,0}) tuple(%i, %alone)
}
ENTRY %main (a: f32[2,8]) -> f32[2,8] {
  %a = f32[2,8]{1,0} parameter(0)
  %w = (s32[], f32[2,8]{1,0}) while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %wide = (f32[4,50]{1,0}, bf16[3]{0}) fusion(%a), kind=kLoop, calls=%f, metadata={op_name="jit(f)/dot"}
}
"""
    program = parse_program(text)
    found = {c.kind: c for c in collectives(program)}
    assert {kind: (c.count, c.elements, c.loop) for kind, c in found.items()} == {
        "all-reduce": (5, 16, 5),
        "reduce-scatter": (5, 16, 5),
        "all-gather": (5, 16, 5),
    }
    wide = program.named["wide"]
    assert wide.opcode == "fusion" and [a.bytes for a in wide.results] == [800, 6]
    assert [i.name for i in unsplit_rows(program, 50, 4)] == ["wide"]
    assert unsplit_rows(program, 50, 5) == []


def test_a_heap_is_divided_by_address() -> None:
    text = """BufferAssignment:
allocation 0: size 64, parameter 0, shape |f32[16]| at ShapeIndex {}:
 value: <1 p @0> (size=64,offset=0): f32[16]{0}
allocation 1: size 100, preallocated-temp:
 value: <2 kept @0> (size=40,offset=0): f32[10]{0}
 value: <3 late{1} @0> (size=60,offset=20): f32[15]{0}
 value: <4 early @0> (size=8,offset=60): f32[2]{0}

Total bytes used: 164
"""
    heap = parse_heap(text)
    kinds = {"kept": "a", "late{1}": "b", "early": "c"}
    divided = heap.divided(lambda buffer: kinds[buffer.instruction], ("a", "b", "c"))
    assert divided == {"a": 40, "b": 40, "c": 20}
    assert [buffer.instruction for buffer in heap.largest(5)] == ["late{1}"]
