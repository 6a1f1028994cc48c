"""All GPU tables of the docs in one run, eight minutes on one H100 from a cold start.

    python tests/benchmarks/training/gpu_suite.py --json out.json
    python tests/benchmarks/training/gpu_suite.py --tiny    # a tiny model on the CPU, to try the script

Parts, the most wanted first: the kernel for trees against dense attention, and its time beside blockwise and
cuDNN's attention; a LoRA step of Llama-2-7B shapes with every layer recomputed, against transformers + peft;
an epoch of shared contexts (2,000 tokens, 1 to 32 questions) against ours apart, peft's padded batches and
TRL's packed rows; the longest row of NF4 weights that fits 80 GB, planned and tried; the LoRA step with
nothing recomputed.

Each part has a budget of seconds, and what it has found when it is cut off counts: the file is written anew
after each figure. JAX does not preallocate; the sides of a pair share the device and take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import (
    ROOT,
    SIDE_SCRIPTS,
    Worker,
    WorkerFailed,
    at_least_one,
    check_losses,
    machine,
    median,
    print_table,
    take_turns,
    write_result,
)
from sides.workload import (
    LLAMA_2_7B,
    TARGETS,
    TINY,
    first_supervised,
    write_config,
    write_examples,
)
from training.raft_epoch import BATCH, made_up, ratios_of

GIB = 2**30
# Neither side may hold memory that it does not use: the other is on the same device.
SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
CPU_ONLY = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
# bf16 sums of another order differ by rounding in every layer; float32 on the CPU must agree closely.
TOLERANCES = {"bfloat16": 2e-2, "float32": 1e-4}
# Dense bf16 matrix products with float32 sums, TFLOP/s, from the vendor's data sheets.
PEAK_TFLOPS = {"B200": 2250, "H200 NVL": 835, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
               "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "RTX 4090": 165,
               "RTX 3090": 71}  # fmt: skip
# Setting of a pair → (our TrainSpec.remat, their gradient checkpointing).
SETTINGS = {"layers recomputed": ("full", True), "nothing recomputed": ("none", False)}
CARD_GB = 80


def model_flops(settings: dict[str, Any]) -> dict[str, float]:
    """Floating-point operations of one training step, a multiply-add counted as two.

    "needed" is what any exact LoRA step must do, and what MFU counts for both sides; "recomputed" is what
    recomputing every layer adds to it, reported apart.
    """
    shape, batch, tokens = settings["shape"], settings["batch"], settings["sequence"]
    width, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    heads = shape["num_attention_heads"]
    kv_width = width // heads * shape["num_key_value_heads"]
    slots = batch * tokens
    # Products with frozen weights, per token: q and o are D x D, k and v D x KH, the three of the MLP D x F.
    # Llama-2-7B: 2*4096^2 + 2*4096^2 + 3*4096*11008 = 202.4M a layer, 6.48e9 in 32 layers; twice that is the
    # forward pass. Backward there is dX = dY W and nothing else (no weight gradient): as much again.
    qkv = width * width + 2 * width * kv_width
    matrices = layers * (qkv + width * width + 3 * width * inner)
    # Nothing trains below the first layer's projections: their dX is not needed.
    frozen_forward = 2 * slots * matrices
    frozen_backward = 2 * slots * (matrices - qkv)
    # Attention, causal: half of T x T, times the width of all heads, 2 operations. Forward has two such
    # products (QK^T, PV), backward four (dV, dP, dQ, dK), but for dK of the first layer: nothing trains below
    # its k. Recomputing the scores in a fused backward is recomputation, and not counted as needed.
    product = batch * tokens * (tokens + 1) * width
    attention_forward, attention_backward = 2 * layers * product, (4 * layers - 1) * product
    # The adapter: x A^T and (.) B^T forward; backward the gradients of both factors of both products, but for
    # the first layer's x.
    out = {"q_proj": width, "v_proj": kv_width}
    thin = 2 * slots * settings["rank"]
    adapter = thin * layers * sum(width + out[name] for name in TARGETS)
    adapter_backward = 2 * adapter - thin * len(TARGETS) * width
    # The head is frozen too (forward and dX) and needed at supervised positions only.
    supervised = batch * (tokens - first_supervised(settings))
    head = 2 * 2 * supervised * width * shape["vocab_size"]
    forward = frozen_forward + attention_forward + adapter
    backward = frozen_backward + attention_backward + adapter_backward
    return {"needed": float(forward + backward + head), "recomputed": float(forward)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=at_least_one, default=480, help="of the whole run")
    parser.add_argument("--steps", type=at_least_one, default=5, help="timed steps of each side")
    parser.add_argument("--warmup", type=at_least_one, default=2, help="untimed steps before, with compiling")
    parser.add_argument("--rounds", type=at_least_one, default=2, help="timed rounds of an epoch")
    parser.add_argument(
        "--layers", type=at_least_one, default=32, help="fewer for a card that does not hold two 7B models"
    )
    parser.add_argument("--peak-tflops", type=float, help="of the device, bf16; known for common cards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, whatever there is")
    return parser.parse_args()


class Suite:
    """What all parts share: settings, the clock, running workers, and the results so far."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.tiny = args, folder, args.tiny
        self.began = time.monotonic()
        self.machine = machine()
        self.results: list[dict[str, Any]] = []
        self.ratios: dict[str, float] = {}
        self.parts: dict[str, dict[str, Any]] = {}
        self.env = CPU_ONLY if args.tiny else SHARED_GPU
        self.base = {
            "shape": TINY if args.tiny else {**LLAMA_2_7B, "num_hidden_layers": args.layers},
            "layer_kinds": None if args.tiny else 2,
            "batch": 1,
            "supervised": 16,
            "rank": 16,
            "alpha": 16,
            "dtype": "float32" if args.tiny else "bfloat16",
            "device": "cpu" if args.tiny else "gpu",
            "learning_rate": 1e-4,
            "seed": args.seed,
        }
        self._alive: list[Worker] = []
        self._late = threading.Event()

    def left(self) -> float:
        """Seconds until the whole run should end."""
        return self.args.seconds - (time.monotonic() - self.began)

    def worker(self, name: str, script: str, settings: dict[str, Any]) -> Worker:
        """Start a worker that ends with its part."""
        worker = Worker(name, SIDE_SCRIPTS / script, settings, self.env)
        self._alive.append(worker)
        return worker

    def model_folder(self, name: str, positions: int) -> str:
        """A new folder with the model's config.json."""
        folder = self.folder / name
        folder.mkdir()
        write_config(folder, self.base["shape"], positions)
        return str(folder)

    def add(self, result: dict[str, Any]) -> None:
        """Keep a result, and write all so far."""
        self.results.append(result)
        self.write()

    def write(self) -> None:
        """Write what is known."""
        settings = {"parts": self.parts, "seconds": self.args.seconds, "steps": self.args.steps, **self.base}
        write_result(self.args.json, self.machine, settings, self.results, self.ratios)

    def run(self, name: str, budget: float, part: Callable[[Suite], None]) -> None:
        """Run one part; at the end of its budget its workers are ended, and its results so far are kept."""
        budget, began = min(budget, self.left()), time.monotonic()
        if budget < 5 and not self.tiny:
            self._end(name, "not run: no time was left", began)
            return
        self._late.clear()
        timer = threading.Timer(600 if self.tiny else budget, self._cut_off)
        timer.start()
        try:
            part(self)
            ended = "done"
        except WorkerFailed as err:
            ended = f"cut off after {budget:.0f} s" if self._late.is_set() else f"failed: {err}"
        except SystemExit as err:  # the sides disagree, so timing them means nothing
            ended = f"failed: {err}"
        finally:
            timer.cancel()
            for worker in self._alive:
                worker.close()
            self._alive.clear()
        self._end(name, ended, began)

    def _cut_off(self) -> None:
        self._late.set()
        for worker in self._alive:
            worker.stop()

    def _end(self, name: str, ended: str, began: float) -> None:
        self.parts[name] = {"ended": ended, "seconds": round(time.monotonic() - began, 1)}
        print(f"[{name}: {ended}, {self.parts[name]['seconds']} s]\n", flush=True)
        self.write()


def find_devices(suite: Suite) -> str | None:
    """Note what both sides run on. Returns what is missing, None if nothing is."""
    for side, script in (("ours", "ours.py"), ("peft", "theirs.py")):
        worker = suite.worker(side, script, {"probe": True})
        worker.answer()
        device = worker.ask("device")
        worker.close()
        if device["platform"] != suite.base["device"]:
            return f"{side} finds no GPU (is its CUDA build installed?); --tiny tries the script on the CPU"
        suite.machine.setdefault("device", device.get("name", "CPU"))
    suite.base["peak_tflops"] = peak_tflops(suite.machine["device"], suite.args.peak_tflops)
    return None


def attention_part(suite: Suite) -> None:
    """The kernel for trees: is it right on this device, and how long does it take?"""
    worker = suite.worker("attention", "kernel_side.py", suite.base)
    worker.answer()
    shapes = range(2 if suite.tiny else 5)
    for dtype in ("float32",) if suite.tiny else ("float32", "bfloat16"):
        for shape in shapes:
            found = worker.ask("check", shape=shape, dtype=dtype, length=96 if suite.tiny else 1000)
            limit = 1e-5 if dtype == "float32" else 2e-2
            suite.add({"part": "attention", **found, "right": max(found["gaps"]) <= limit})
    checks = [result for result in suite.results if result["part"] == "attention"]
    print_table([{key: str(check[key]) for key in ("width", "dtype", "window", "softcap", "right")}
                 | {"largest gap": f"{max(check['gaps']):.1e}"} for check in checks])  # fmt: skip
    if suite.tiny:
        return
    rows = []
    for questions, sides in ((16, ("kernel", "blocks")), (32, ("kernel",)), (0, ("kernel", "cudnn"))):
        for side in sides:
            found = worker.ask("seconds", side=side, questions=questions, repeats=5)
            suite.add({"part": "attention seconds", **found})
            rows.append({"questions": str(questions), "side": side, "ms": f"{1000 * found['seconds']:.2f}"})
    print_table(rows)


def lora_part(setting: str) -> Callable[[Suite], None]:
    """The part that measures a LoRA step of both sides at one setting."""

    def part(suite: Suite) -> None:
        lengths = (64, 128) if suite.tiny else (512, 2048, 8192)
        name = setting.split()[0]
        remat, checkpointing = SETTINGS[setting]
        settings = {**suite.base, "folder": suite.model_folder(name, lengths[-1]), "sequence": lengths[-1]}
        workers = [
            suite.worker("ours", "ours.py", {**settings, "remat": remat}),
            suite.worker("peft", "theirs.py", {**settings, "checkpointing": checkpointing}),
        ]
        alive = [worker for worker in workers if "error" not in worker.answer()]
        for length in lengths:
            alive = lora_step(suite, setting, length, alive)

    return part


def lora_step(suite: Suite, setting: str, length: int, workers: list[Worker]) -> list[Worker]:
    """Time the sides at one length. Returns those that did not run out of memory."""
    settings = {**suite.base, "sequence": length}
    for worker in workers:
        worker.ask("use", sequence=length)
    before = take_turns(workers, suite.args.warmup)
    losses = {side: [t["loss"] for t in turns] for side, turns in before.items() if "error" not in turns[-1]}
    worst = check_losses(losses, TOLERANCES[suite.base["dtype"]]) if len(losses) > 1 else None
    alive = [worker for worker in workers if worker.name in losses]
    timed = take_turns(alive, suite.args.steps, first=suite.args.warmup)
    flops, peak = model_flops(settings), suite.base.get("peak_tflops")
    measured = {}
    for worker in workers:
        result: dict[str, Any] = {"part": "lora", "sequence": length, "setting": setting, "side": worker.name}
        turns = timed.get(worker.name, [])
        if not turns or "error" in turns[-1]:
            suite.add({**result, "error": "out of memory"})
            continue
        seconds = median(turns)
        result |= {
            "median_seconds": seconds,
            "seconds": [turn["seconds"] for turn in turns],
            "tokens_per_s": length / seconds,
            "mfu": flops["needed"] / seconds / (peak * 1e12) if peak else None,
            "needed_flops": flops["needed"],
            "recomputed_flops": flops["recomputed"],
            "losses": losses[worker.name],
            "largest_loss_difference": worst,
            **worker.ask("memory"),
        }
        measured[worker.name] = result
        suite.add(result)
    if len(measured) == 2 and not suite.tiny:
        ours, peft = measured["ours"], measured["peft"]
        suite.ratios[f"speed@{length}, {setting}"] = round(ours["tokens_per_s"] / peft["tokens_per_s"], 3)
        share = ours["device_peak_bytes"] / peft["device_peak_bytes"]
        suite.ratios[f"memory@{length}, {setting}"] = round(share, 3)
    print_table([lora_row(result) for result in suite.results[-len(workers) :]])
    return [worker for worker in alive if "error" not in timed[worker.name][-1]]


def lora_row(result: dict[str, Any]) -> dict[str, str]:
    """A result as the row of a table."""
    done, mfu, peak = "error" not in result, result.get("mfu"), result.get("device_peak_bytes")
    return {
        **{name: str(result[name]) for name in ("sequence", "setting", "side")},
        "step ms": f"{1000 * result['median_seconds']:.1f}" if done else result["error"],
        "tokens/s": f"{result['tokens_per_s']:.0f}" if done else "",
        "MFU": "" if mfu is None else f"{mfu:.1%}",
        "device peak GiB": "" if peak is None else f"{peak / GIB:.2f}",
    }


def raft_part(suite: Suite) -> None:
    """An epoch of made-up contexts, each with 1 to 32 questions."""
    counts, prefix, longest = ((1, 4), 100, 192) if suite.tiny else ((1, 4, 8, 16, 32), 2000, 2048)
    settings = {
        **suite.base,
        "folder": suite.model_folder("raft", longest),
        "sequence": longest,
        "batch": BATCH,
        "tokens_per_batch": 4 * longest,
        "rounds": suite.args.rounds,
        "per_round": 1,
        "checkpointing": True,
        "remat": "full",
        "sharing": "auto",
        "packed": 0,
    }
    vocabulary = suite.base["shape"]["vocab_size"]
    for count in counts:
        rows = made_up(prefix, count, max(8, 48 // count), suite.args.seed)
        rows = [row._replace(prompt=row.prompt % vocabulary, answer=row.answer % vocabulary) for row in rows]
        write_examples(suite.folder / f"{count}.npz", rows)
    settings["examples"] = str(suite.folder / f"{counts[0]}.npz")
    ours = suite.worker("ours", "raft_ours.py", settings)
    theirs = suite.worker("theirs", "raft_theirs.py", settings)
    sides = {
        "shared": (ours, {"sharing": "auto"}),
        "unshared": (ours, {"sharing": "off"}),
        "peft": (theirs, {"packed": 0}),
        "trl": (theirs, {"packed": longest}),
    }
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed (pip install '.[bench]'); its packed rows are not measured")
        del sides["trl"]
    for worker in (ours, theirs):
        worker.answer()
    # Before anything is trained: afterwards the sides have not taken the same steps.
    losses = {}
    for side, (worker, changes) in sides.items():
        worker.ask("use", examples=f"{suite.folder}/{counts[-1]}.npz", **changes)
        answer = worker.ask("check", ids=[f"0-{n}" for n in range(BATCH)])
        if "error" in answer:
            raise WorkerFailed(f"{side} cannot compute one loss: {answer['error']}")
        losses[side] = answer["loss"]
    suite.add({"part": "raft check", "losses": losses})
    check_losses({side: [loss] for side, loss in losses.items()}, TOLERANCES[suite.base["dtype"]])
    for count in counts:
        found: dict[str, dict[str, Any]] = {}
        for side, (worker, changes) in sides.items():
            found[side] = epoch_side(suite, worker, {"examples": f"{suite.folder}/{count}.npz", **changes})
            suite.add({"part": "raft", "data": f"S={count}", "side": side, **found[side]})
        print_table([raft_row(count, side, result) for side, result in found.items()])
        if suite.tiny:
            continue
        named = [{"side": side, **result} for side, result in found.items()]
        # The peak of ours is of all its epochs so far, so a ratio of memory would say nothing.
        speeds = ratios_of(f"S={count}", [result for result in named if "error" not in result])
        suite.ratios |= {name: ratio for name, ratio in speeds.items() if not name.startswith("memory")}


def epoch_side(suite: Suite, worker: Worker, changes: dict[str, Any]) -> dict[str, Any]:
    """Time a side's epoch: its rates of records, and what it did."""
    worker.ask("use", **changes)
    if "error" in worker.ask("warm"):
        return {"error": "out of memory"}
    turns = take_turns([worker], suite.args.rounds)[worker.name]
    if "error" in turns[-1]:
        return {"error": "out of memory"}
    about = worker.ask("about")
    epochs = [about["padded"] * turn["seconds"] / turn["padded"] for turn in turns]
    rates = [about["records"] / seconds for seconds in epochs]
    return {
        "rates": rates,
        "records_per_second": statistics.median(rates),
        "epoch_seconds": epochs,
        **about,
        **worker.ask("memory"),
    }


def raft_row(count: int, side: str, result: dict[str, Any]) -> dict[str, str]:
    """A result as the row of a table."""
    done, peak = "error" not in result, result.get("device_peak_bytes")
    return {
        "questions": str(count),
        "side": side,
        "records/s": f"{result['records_per_second']:.2f}" if done else result["error"],
        "tokens of the epoch, padded": f"{result['padded']:,}" if done else "",
        "peak GiB so far": "" if peak is None else f"{peak / GIB:.2f}",
    }


def longest_part(suite: Suite) -> None:
    """The longest row of NF4 weights that fits the card: as planned, and shorter ones until one runs."""
    planned = longest_planned(suite)
    suite.add({"part": "longest row", "planned": planned, "card_gb": CARD_GB})
    print(f"planned for {CARD_GB} GB with NF4: rows of {planned} tokens")
    folder = suite.model_folder("longest", planned)
    settings = {**suite.base, "folder": folder, "quantization": "nf4", "remat": "full"}
    length = planned
    while length >= planned // 2:
        worker = suite.worker("ours", "ours.py", {**settings, "sequence": length})
        answer = worker.answer()
        turn = answer if "error" in answer else worker.ask("step", step=0)
        fits = "error" not in turn
        memory = worker.ask("memory") if fits else {}
        worker.close()
        suite.add({"part": "longest row", "length": length, "fits": fits, **turn, **memory})
        print(f"rows of {length} tokens: {'run' if fits else 'out of memory'}")
        if fits:
            return
        length = int(length * 0.95) // 64 * 64


def longest_planned(suite: Suite) -> int:
    """What the memory plan, compiled without a device, says."""
    positions = 256 if suite.tiny else 262144
    folder = suite.folder / "plan"
    folder.mkdir()
    write_config(folder, suite.base["shape"], positions)
    fields = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(fields))
    spec = {
        "model": str(folder),
        "quantization": "nf4",
        "lora": {"r": 16},
        "seq_len": positions if suite.tiny else 32768,
        "answer_tokens": 16,
        "card": 24 if suite.tiny else CARD_GB,
        "target": "cpu" if suite.tiny else "auto",
        "dtype": suite.base["dtype"],
        "output_dir": str(folder / "out"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "jora_core.commands.memory", "--spec", str(folder / "spec.json")]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600 if suite.tiny else max(suite.left(), 60),
        )
    except subprocess.TimeoutExpired:
        raise WorkerFailed("the plan of the longest row was not ready in time") from None
    if done.returncode:
        raise WorkerFailed(f"the plan of the longest row failed: {done.stderr.strip()[-500:]}")
    longest = json.loads((folder / "out" / "result.json").read_text())["longest_row"]
    if longest is None:
        raise WorkerFailed("by the plan, no row fits")
    return longest


def peak_tflops(name: str, given: float | None) -> float | None:
    """Peak of the named device: what the command line says, else the first known name in it."""
    if given:
        return given
    return next((float(peak) for known, peak in PEAK_TFLOPS.items() if known in name), None)


# Part → seconds of its budget, and its function.
PARTS: dict[str, tuple[float, Callable[[Suite], None]]] = {
    "attention": (70, attention_part),
    "lora": (130, lora_part("layers recomputed")),
    "raft": (170, raft_part),
    "longest": (80, longest_part),
    "lora-kept": (90, lora_part("nothing recomputed")),
}


def main() -> int:
    """Run the parts, print, write."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(args, Path(folder))
        missing = find_devices(suite)
        if missing:
            print(f"error: nothing was measured: {missing}", file=sys.stderr)
            return 2
        for name in args.parts:
            suite.run(name, *PARTS[name])
    for ratio, value in suite.ratios.items():
        print(f"{ratio}: {value}")
    if args.tiny:
        print("not measured: a tiny model ran on the CPU, which says nothing about speed or memory")
    failed = [name for name, part in suite.parts.items() if part["ended"].startswith("failed")]
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
