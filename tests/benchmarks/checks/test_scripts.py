"""The benchmarks run, both of their sides compute the same, and what they write has the promised form.

Nothing here looks at a time: speed is measured by hand on a quiet machine (docs/benchmarks.md).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
TINY = ["--hidden", "64", "--heads", "4", "--kv-heads", "2", "--layers", "2", "--feed-forward", "128",
        "--vocab", "256"]  # fmt: skip

pytest.importorskip("torch")
pytest.importorskip("peft")


def run(script: str, *words: str, to: Path) -> tuple[dict[str, Any], str]:
    """What a script writes and prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *words, "--steps", "2", "--warmup", "1", "--json", str(to)],
        capture_output=True,
        text=True,
        timeout=580,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(to.read_text())
    assert set(written) == {"machine", "settings", "results", "ratios"}
    assert {"processor", "cores", "packages"} <= set(written["machine"])
    assert all(isinstance(value, float) and value > 0 for value in written["ratios"].values())
    return written, done.stdout


SCRIPTS = sorted(
    path.relative_to(HERE).as_posix()
    for path in HERE.glob("*/*.py")
    if path.parent.name not in {"checks", "sides"}
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_to_call_it(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / script), "--help"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {Path(script).name}")


def test_lora_step_compares_the_same_computation(tmp_path: Path) -> None:
    words = ["--sequences", "64", "--supervised", "5"]
    written, printed = run("training/lora_step.py", *TINY, *words, to=tmp_path / "out.json")
    assert set(written["ratios"]) == {"speed@64", "memory@64"} and "speed@64" in printed
    ours, off, on = results = written["results"]
    assert [r["side"] for r in results] == ["ours", "peft, checkpointing off", "peft, checkpointing on"]
    assert len(ours["losses"]) == 3 and len(set(ours["losses"])) == 3
    for theirs in (off, on):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["in_ratio"] and off["in_ratio"] != on["in_ratio"]
    assert all(r["peak_bytes"] > r["peak_above_imports_bytes"] > 0 for r in results)


@pytest.mark.slow
def test_lora_step_compares_our_variants(tmp_path: Path) -> None:
    words = ["--sequences", "64", "--ablate", "--supervised", "all"]
    written, _ = run("training/lora_step.py", *TINY, *words, to=tmp_path / "out.json")
    by_side = {r["side"]: r["losses"] for r in written["results"]}
    steps = {side: losses for side, losses in by_side.items() if side != "forward only"}
    first = next(iter(steps.values()))
    assert {"logits of all tokens", "plain attention", "forward only"} < set(by_side) and len(steps) > 2
    assert all(losses == pytest.approx(first, rel=1e-5) for losses in steps.values())
    assert by_side["forward only"][0] == pytest.approx(first[0], rel=1e-5)


@pytest.mark.slow
def test_lora_step_compares_our_products(tmp_path: Path) -> None:
    words = ["--sequences", "64", "--precisions", "--supervised", "all"]
    written, _ = run("training/lora_step.py", *TINY, *words, to=tmp_path / "out.json")
    exact, rounded = (result["losses"] for result in written["results"])
    assert rounded != exact and rounded == pytest.approx(exact, rel=1e-2)


@pytest.mark.slow
def test_lora_step_tells_where_the_time_goes(tmp_path: Path) -> None:
    words = ["--profile", "--sequences", "64"]
    written, printed = run("training/lora_step.py", *TINY, *words, to=tmp_path / "out.json")
    for result in written["results"]:
        assert min(result["by_kind"][kind] for kind in ("projection", "attention", "lora", "vocabulary")) > 0
    assert "operations of" in printed and "64, bfloat16" in printed


def test_operations_are_counted_for_the_part_that_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    kinds = importlib.import_module("sides.step_profile").kinds_of_operations
    program = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %exp.1 = f32[2]{0} exponential(%p), metadata={op_name="jit(f)/jvp()/while/body/attention/exp"}
}

%body (p: f32[2]) -> f32[2] {
  %dot.1 = f32[2]{0} dot(%p, %p), metadata={op_name="jit(f)/projection/lora/dot_general"}
  %product.1 = f32[2]{0} fusion(%p), kind=kCustom, calls=%nothing
  %inner.1 = f32[2]{0} fusion(%p), kind=kLoop, calls=%fused
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %while.1 = f32[2]{0} while(%p), body=%body
  %copy.1 = f32[2]{0} copy(%p)
}
"""
    assert kinds(program) == {
        "exp.1": "attention",
        "dot.1": "lora",
        "product.1": "lora",
        "inner.1": "attention",
        "copy.1": "other",
    }


@pytest.mark.slow
def test_all_sides_compute_the_same_attention(tmp_path: Path) -> None:
    to = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "training" / "cpu_attention.py"), "--rounds", "1", "--json", str(to)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = {(result["slots"], result["side"]) for result in json.loads(to.read_text())["results"]}
    slots = {name for name, _ in measured}
    ours = {(name, side) for name in slots for side in ("kernels", "XLA's loops")}
    assert measured == ours | {(name, "PyTorch") for name in slots if name.startswith("4 rows")}


@pytest.mark.slow
def test_raft_epoch_compares_the_same_records(tmp_path: Path, shared: Path) -> None:
    """Questions over tables and a tiny model: every side has the same loss of the same records."""
    to = tmp_path / "out.json"
    words = ["--tiny", "--records", "30", "--rounds", "1", "--data", "wikitables", "--json", str(to)]
    script = HERE / "training" / "raft_epoch.py"
    done = subprocess.run(
        [sys.executable, str(script), *words, "--sides", "shared", "unshared", "peft"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JORA_SHARED": str(shared)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(to.read_text())
    names = {"wikitables/peft", "wikitables/unshared", "memory/peft wikitables", "memory/peft"}
    assert set(written["ratios"]) == names
    ours, apart, theirs = written["results"]
    assert [ours["side"], apart["side"], theirs["side"]] == ["shared", "unshared", "peft"]
    assert ours["check_loss"] == pytest.approx(theirs["check_loss"], rel=1e-4)
    assert ours["check_loss"] == pytest.approx(apart["check_loss"], rel=1e-5)
    assert ours["padded"] < apart["padded"] / 3
    assert ours["groups"] == ours["contexts"] < ours["records"] == apart["records"]


def test_growing_windows_hold_what_came_before(monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    records = importlib.import_module("sides.raft_records")
    (rows,) = records.take(records.growing_contexts(shared, 0), 20, lambda context: True)
    shown = [row["input"].rsplit("\n\nComment by ", 1)[0] for row in rows]
    assert len(set(shown)) == len(rows) == 20
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert all(f"\n{row['output']}\n" in f"\n{text}\n" for row, text in zip(rows, shown, strict=True))


@pytest.mark.timeout(600)
def test_gpu_suite_runs_every_part_on_a_tiny_model(tmp_path: Path) -> None:
    # The fifth part is the second with another setting.
    words = ["--tiny", "--rounds", "1", "--parts", "attention", "lora", "raft", "longest"]
    written, printed = run("training/gpu_suite.py", *words, to=tmp_path / "out.json")
    assert {part["ended"] for part in written["settings"]["parts"].values()} == {"done"}
    assert "which says nothing about speed" in printed
    by_part: dict[str, list[dict[str, Any]]] = {}
    for result in written["results"]:
        by_part.setdefault(result["part"], []).append(result)
    assert [result["right"] for result in by_part["attention"]] == [True, True]
    assert len(by_part["lora"]) == 4, "two lengths, two sides"
    for ours, theirs in zip(by_part["lora"][::2], by_part["lora"][1::2], strict=True):
        assert (ours["side"], theirs["side"]) == ("ours", "peft") and ours["setting"] == theirs["setting"]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    shared, apart = (r for r in by_part["raft"] if r["data"] == "S=4" and r["side"].endswith("shared"))
    losses = by_part["raft check"][0]["losses"]
    assert losses["shared"] == pytest.approx(losses["unshared"], rel=1e-5)
    assert losses["shared"] == pytest.approx(losses["peft"], rel=1e-4)
    assert shared["padded"] < apart["padded"] / 2
    planned, tried = by_part["longest row"]
    assert planned["planned"] == tried["length"] == 256 and tried["fits"]


def test_gpu_suite_keeps_what_a_part_found_before_its_time_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    gpu_suite = importlib.import_module("training.gpu_suite")
    monkeypatch.setattr(
        sys, "argv", ["gpu_suite.py", "--json", str(tmp_path / "out.json"), "--seconds", "60"]
    )
    suite = gpu_suite.Suite(gpu_suite.arguments(), tmp_path)
    # No side of the suite: without a GPU, those end by themselves.
    endless = tmp_path / "endless.py"
    endless.write_text("import time\n\ntime.sleep(600)\n")

    def part(suite: Any) -> None:
        suite.add({"part": "endless", "figure": 1})
        suite.worker("endless", str(endless), {}).ask("nothing that it ever answers")
        suite.add({"part": "endless", "figure": 2})

    def answer(worker: Any) -> None:
        while worker._process.poll() is None:
            time.sleep(0.05)
        raise gpu_suite.WorkerFailed("ended")

    monkeypatch.setattr(gpu_suite.Worker, "answer", answer)
    suite.run("endless", 6, part)
    suite.args.seconds = 1
    suite.run("late", 6, part)
    written = json.loads((tmp_path / "out.json").read_text())
    assert [result["figure"] for result in written["results"]] == [1]
    parts = written["settings"]["parts"]
    assert parts["endless"]["ended"] == "cut off after 6 s"
    assert parts["late"]["ended"] == "not run: no time was left"


def test_sides_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    harness = importlib.import_module("harness")
    assert harness.check_losses({"a": [2.0, 4.0], "b": [2.0, 4.0002]}, 1e-4) == pytest.approx(5e-5)
    with pytest.raises(SystemExit, match="the sides disagree"):
        harness.check_losses({"a": [2.0, 4.0], "b": [2.0, 4.001]}, 1e-4)
    with pytest.raises(SystemExit, match="the sides disagree"):
        harness.check_losses({"a": [2.0], "b": [float("nan")]}, 1e-4)


def test_needed_operations_are_those_that_torch_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The arithmetic behind MFU against torch's counter, on a step with all logits and unfused attention."""
    monkeypatch.syspath_prepend(str(HERE))
    torch = importlib.import_module("torch")
    counter = importlib.import_module("torch.utils.flop_counter")
    gpu_suite, theirs = importlib.import_module("training.gpu_suite"), importlib.import_module("sides.theirs")
    workload = importlib.import_module("sides.workload")
    settings = {"folder": str(tmp_path), "shape": workload.TINY, "batch": 2, "sequence": 32, "supervised": 0,
                "rank": 4, "alpha": 4, "dtype": "float32", "checkpointing": False, "seed": 0}  # fmt: skip
    workload.write_config(tmp_path, workload.TINY, 32)
    model = theirs.make_model(settings, torch.device("cpu"))
    model.set_attn_implementation("eager")
    ids = torch.from_numpy(workload.token_ids(settings, 0)).long()
    with counter.FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    more = 11 * 2 * 64 * (2 * 32 * 32 - 32 * 33)  # it computes whole squares of scores, not triangles,
    more += 2 * 2 * 2 * 64 * 256  # and logits of the last token too
    assert counted.get_total_flops() - more == gpu_suite.model_flops(settings)["needed"]


def test_tensor_parallel(tmp_path: Path) -> None:
    to = tmp_path / "out.json"
    words = ["--small", "--sequences", "256", "--tensor", "1", "4", "--remat", "full", "--target", "host"]
    done = subprocess.run(
        [sys.executable, str(HERE / "memory" / "tensor_parallel.py"), *words, "--json", str(to)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(to.read_text())
    assert set(written["ratios"]) == {"bytes@4", "allreduce_per_layer@4"}
    # Sequence-sharded: a layer gathers and scatters its activation, and never sums a whole one.
    assert 3.9 < written["ratios"]["allreduce_per_layer@4"] < 6
    for result in written["results"]:
        kinds = {kind: size for kind, size in result["bytes"].items() if kind != "total"}
        assert sum(kinds.values()) == result["bytes"]["total"]
        assert result["unsplit_logits"] == []
