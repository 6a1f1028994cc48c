"""Plans for described slices of TPUs. Nothing runs on a TPU, and none is needed.

What compiles needs libtpu (`jora-raft[tpu]`); what is said about bad input mostly does not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.planning.buffer_assignment import parse_heap
from jora_core.planning.compile_step import compile_step, needed_bytes
from jora_core.planning.compile_target import Target
from jora_core.planning.tpu_topology import CHIPS, described_slice, libtpu_installed
from jora_core.specs.planning import MemorySpec

pytestmark = [pytest.mark.usefixtures("real_compilation"), pytest.mark.timeout(900)]
needs_libtpu = pytest.mark.skipif(not libtpu_installed(), reason="needs libtpu: jora-raft[tpu]")

LENGTH = 1024
# All widths, also of q, k and v as one product, are below the length of a row.
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 256,
    "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 640, "max_position_embeddings": 4096,
}  # fmt: skip
# Its weights alone are more than the 16 GiB of one chip.
TOO_LARGE = LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "head_dim": 32}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_memory(folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    spec = folder / "spec.json"
    known = {"model": str(folder), "target": "tpu", "find_longest": False, "output_dir": str(folder / "out")}
    spec.write_text(json.dumps(known | settings))
    command = [sys.executable, "-m", "jora_core.commands.memory", "--spec", str(spec)]
    return subprocess.run(command, capture_output=True, text=True)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:2x2x1", "v5p:2x2", "a slice"])
def test_an_unknown_slice_is_one_line(tmp_path: Path, topology: str) -> None:
    line = error_of(run_memory(write_config(tmp_path, LLAMA), topology=topology))
    assert f"topology {topology}: expected a chip of v5e, v6e, v5p" in line and "v5e:2x4" in line


def test_settings_of_another_target(tmp_path: Path) -> None:
    write_config(tmp_path, LLAMA)
    assert "topology is for target=tpu" in error_of(run_memory(tmp_path, target="host", topology="v5e:2x4"))
    assert "the topology names the chip" in error_of(run_memory(tmp_path, card=24))


@pytest.mark.skipif(libtpu_installed(), reason="libtpu is installed")
def test_the_missing_compiler_is_named(tmp_path: Path) -> None:
    line = error_of(run_memory(write_config(tmp_path, LLAMA), topology="v5e:2x4"))
    assert "install jora-raft[tpu]" in line


@needs_libtpu
@pytest.mark.parametrize(("topology", "devices"), [("v5e:2x4", 8), ("v5e:1x1", 1), ("v5p:2x2x2", 8)])
def test_a_mesh_has_the_devices_of_its_slice(tmp_path: Path, topology: str, devices: int) -> None:
    line = error_of(run_memory(write_config(tmp_path, LLAMA), topology=topology, mesh={"tensor": 16}))
    assert f"topology {topology} has {devices} devices" in line and "x tensor=16 has 16" in line


@needs_libtpu
def test_a_plan_for_eight_chips(tmp_path: Path) -> None:
    write_config(tmp_path, LLAMA)
    done = run_memory(tmp_path, topology="v5e:2x4", mesh={"data": 2, "tensor": 4}, rows=2, seq_len=256)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "result.json").read_text())
    sizes = plan["bytes_per_device"]
    assert sizes["total"] == sum(size for kind, size in sizes.items() if kind != "total")
    # Weights of a quarter of each layer, and norms on every device, in two bytes.
    layer = 256 * 8 * 32 * 2 + 2 * 256 * 4 * 32 + 3 * 256 * 704
    assert sizes["weights"] == 2 * ((3 * layer + 2 * 640 * 256) // 4 + 7 * 256)
    (chip,) = plan["cards"]
    assert chip["fits"] and chip["free_bytes"] == CHIPS["v5e"].usable - sizes["total"]
    assert plan["collectives"] is None


@needs_libtpu
def test_a_step_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    line = error_of(run_memory(write_config(tmp_path, TOO_LARGE), topology="v5e:1x1", seq_len=64))
    needed = re.search(r"1 row\(s\) of 64 tokens need ([\d.]+) GB a device", line)
    # Two bytes for each weight of the feed-forward part alone.
    assert needed and float(needed[1]) > 2 * 80 * 3 * 8192 * 28672 / 1e9
    assert "TPU v5e, 16 GiB" in line and "larger topology" in line


@needs_libtpu
def test_no_array_is_as_wide_as_two_rows(tmp_path: Path) -> None:
    """A TPU's program holds scores of blocks, forward and backward, and in no memory those of a row."""
    spec = MemorySpec.model_validate(
        {"model": write_config(tmp_path, LLAMA), "output_dir": tmp_path, "seq_len": LENGTH, "target": "tpu"}
    )
    chip, mesh = described_slice("v5e:1x1", 1, 1)
    step = compile_step(Target("tpu", "v5e", mesh, chip=chip), ModelConfig.from_hf(tmp_path), spec, LENGTH)
    shapes = {array.shape for made in step.program.named.values() for array in made.results}
    assert any(shape.count(512) == 2 for shape in shapes), "scores of two blocks of 512 slots are seen"
    assert [shape for shape in shapes if sum(axis >= LENGTH for axis in shape) > 1] == []


def test_what_the_compiler_says_it_needs() -> None:
    now = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(27.39G) exceeds available HBM (15.75G)."
    )
    before = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. Exceeded …"
    )
    assert needed_bytes(now) == int(27.39 * 2**30)
    assert needed_bytes(before) == int(512.5 * 2**20)
    assert needed_bytes("Ran out of memory in memory space vmem. Used 20.0M of 16.0M vmem.") is None


def test_other_memories_are_left_out() -> None:
    text = """BufferAssignment:
allocation 0: size 100, preallocated-temp:
 value: <2 kept @0> (size=40,offset=0): f32[10]{0:T(128)}
allocation 1: size 4096, color 1, preallocated-temp:
 value: <3 near @1> (size=4096,offset=0): f32[8,128]{1,0:T(8,128)S(1)}
"""
    assert parse_heap(text).bytes == 4196
    heap = parse_heap(text, main_memory_only=True)
    assert heap.bytes == 100 and [buffer.instruction for buffer in heap.buffers] == ["kept"]
