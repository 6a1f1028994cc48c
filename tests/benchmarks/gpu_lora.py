"""LoRA training of Llama-2-7B shapes on one GPU: ours against transformers + peft, interleaved in one run.

    python tests/benchmarks/gpu_lora.py --json out.json

Random bfloat16 weights (no checkpoint), rank 16 on q and v, batch 1, sequences of 512, 2,048, 8,192 tokens.
Compared at equal settings: nothing recomputed on either side, and every layer recomputed on either side. The
two sides of a pair share the device and take turns; JAX does not preallocate. Where only one side sees a GPU,
or none does, the script says what it could not measure; without any, it runs a tiny model on the CPU, which
proves that both sides compute the same loss and nothing about speed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness import Worker, at_least_one, check_losses, machine, median, print_table, take_turns, write_result
from sides.workload import LLAMA_2_7B, TARGETS, TINY, first_supervised, supervised_tokens, write_config

HERE = Path(__file__).resolve().parent
GIB = 2**30
# Neither side may hold memory that it does not use: the other is on the same device.
SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
CPU_ONLY = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
# name of the pair → (our TrainSpec.remat, their gradient checkpointing)
PAIRS = {"nothing recomputed": ("none", False), "layers recomputed": ("full", True)}
# bf16 sums of another order differ by rounding in every layer; float32 on the CPU must agree closely.
TOLERANCES = {"bfloat16": 2e-2, "float32": 1e-4}
# Dense bf16 matrix products with float32 sums, TFLOP/s, from the vendor's data sheets.
PEAK_TFLOPS = {"B200": 2250, "H200 NVL": 835, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
               "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "RTX 4090": 165,
               "RTX 3090": 71}  # fmt: skip


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
    parser.add_argument(
        "--sequences", type=at_least_one, nargs="+", default=[512, 2048, 8192], help="of 64 each"
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--steps", type=at_least_one, default=10, help="timed steps of each side")
    parser.add_argument(
        "--warmup", type=at_least_one, default=3, help="untimed steps before those, with compiling"
    )
    parser.add_argument("--batch", type=at_least_one, default=1)
    parser.add_argument(
        "--supervised", type=supervised_tokens, default=16, help="last tokens of a sequence with loss, or all"
    )
    parser.add_argument(
        "--layers", type=at_least_one, default=32, help="fewer for a card that does not hold 7B"
    )
    parser.add_argument("--peak-tflops", type=float, help="of the device, bf16; known for common cards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="the tiny run on the CPU, whatever there is")
    return parser.parse_args()


def devices(folder: str) -> dict[str, dict[str, Any]]:
    """What each side finds when it may choose: platform ("gpu" or not) and name."""
    found = {}
    for side, script in (("ours", "ours.py"), ("peft", "theirs.py")):
        worker = Worker(side, HERE / "sides" / script, {"probe": True, "folder": folder}, SHARED_GPU)
        try:
            worker.answer()
            found[side] = worker.ask("device")
        finally:
            worker.close()
    return found


def run_pair(
    sides: list[str], pair: str, settings: dict[str, Any], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure the sides at one setting: a result for each, in order; out of memory is a result too."""
    remat, checkpointing = PAIRS[pair]
    chosen = {
        "ours": ("ours.py", {**settings, "remat": remat}),
        "peft": ("theirs.py", {**settings, "checkpointing": checkpointing}),
    }
    env = SHARED_GPU if settings["device"] == "gpu" else CPU_ONLY
    workers: list[Worker] = []
    try:
        for side in sides:
            workers.append(Worker(side, HERE / "sides" / chosen[side][0], chosen[side][1], env))
        failed = {worker.name for worker in workers if "error" in worker.answer()}
        alive = [worker for worker in workers if worker.name not in failed]
        before = take_turns(alive, args.warmup)
        failed |= {name for name, turns in before.items() if "error" in turns[-1]}
        losses = {name: [t["loss"] for t in turns] for name, turns in before.items() if name not in failed}
        worst = check_losses(losses, TOLERANCES[settings["dtype"]]) if len(losses) > 1 else None
        alive = [worker for worker in alive if worker.name not in failed]
        timed = take_turns(alive, args.steps, first=args.warmup)
        results = []
        for side in sides:
            result: dict[str, Any] = {"sequence": settings["sequence"], "setting": pair, "side": side}
            turns = timed.get(side, [])
            if not turns or "error" in turns[-1]:
                results.append({**result, "error": "out of memory"})
                continue
            memory = next(worker for worker in alive if worker.name == side).ask("memory")
            results.append({**result, **summary(turns, settings, args), **memory, "losses": losses[side]})
            results[-1]["largest_loss_difference"] = worst
        return results
    finally:
        for worker in workers:
            worker.close()


def summary(
    turns: list[dict[str, Any]], settings: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Step time, tokens/s, and the share of the device's peak that the needed operations are."""
    seconds = median(turns)
    flops = model_flops(settings)
    peak = settings["peak_tflops"]
    return {
        "median_seconds": seconds,
        "seconds": [turn["seconds"] for turn in turns],
        "tokens_per_s": settings["batch"] * settings["sequence"] / seconds,
        "needed_flops": flops["needed"],
        "recomputed_flops": flops["recomputed"],
        "mfu": flops["needed"] / seconds / (peak * 1e12) if peak else None,
    }


def peak_tflops(name: str, given: float | None) -> float | None:
    """Peak of the named device: what the command line says, else the first known name in it."""
    if given:
        return given
    return next((float(peak) for known, peak in PEAK_TFLOPS.items() if known in name), None)


def ratios_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """speed: our tokens/s over theirs; memory: our peak over theirs; where both sides have figures."""
    ratios = {}
    pairs = {(r["sequence"], r["setting"]): {} for r in results}
    for result in results:
        pairs[result["sequence"], result["setting"]][result["side"]] = result
    for (sequence, setting), sides in pairs.items():
        ours, peft = sides.get("ours", {}), sides.get("peft", {})
        if "tokens_per_s" in ours and "tokens_per_s" in peft:
            name = f"{sequence}, {setting}"
            ratios[f"speed@{name}"] = round(ours["tokens_per_s"] / peft["tokens_per_s"], 3)
            ratios[f"memory@{name}"] = round(ours["device_peak_bytes"] / peft["device_peak_bytes"], 3)
    return ratios


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Results as the rows of a table."""
    rows = []
    for result in results:
        row = {name: str(result[name]) for name in ("sequence", "setting", "side")}
        done = "error" not in result
        mfu, peak = result.get("mfu"), result.get("device_peak_bytes")
        row["step ms"] = f"{1000 * result['median_seconds']:.1f}" if done else result["error"]
        row["tokens/s"] = f"{result['tokens_per_s']:.0f}" if done else ""
        row["MFU"] = "" if mfu is None else f"{mfu:.1%}"
        row["device peak GiB"] = "" if peak is None else f"{peak / GIB:.2f}"
        rows.append(row)
    return rows


def main() -> int:
    """Measure what this machine allows, print, write."""
    args = arguments()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = {} if args.cpu else devices(folder)
        sides = [side for side, device in found.items() if device["platform"] == "gpu"]
        name = found[sides[0]]["name"] if sides else about["processor"]
        shape = {**LLAMA_2_7B, "num_hidden_layers": args.layers} if sides else TINY
        settings = {
            "folder": folder,
            "shape": shape,
            "layer_kinds": 2 if sides else None,
            "batch": args.batch,
            "supervised": args.supervised,
            "rank": 16,
            "alpha": 16,
            "dtype": "bfloat16" if sides else "float32",
            "device": "gpu" if sides else "cpu",
            "learning_rate": 1e-4,
            "seed": args.seed,
            "peak_tflops": peak_tflops(name, args.peak_tflops) if sides else None,
        }
        missing = unmeasured(sides, settings)
        print(f"{name}\n" + "".join(f"not measured: {line}\n" for line in missing))
        sequences = args.sequences if sides else [64]
        write_config(Path(folder), shape, max(sequences))
        results: list[dict[str, Any]] = []
        for sequence in sequences:
            for pair in args.pairs:
                measured = run_pair(sides or ["ours", "peft"], pair, {**settings, "sequence": sequence}, args)
                print_table(rows_of(measured))
                results += measured
        ratios = ratios_of(results) if sides else {}
    for ratio, value in ratios.items():
        print(f"{ratio}: {value}")
    about |= {"device": name, "not_measured": missing}
    settings |= {"sequences": sequences, "warmup": args.warmup, "steps": args.steps}
    write_result(args.json, about, settings, results, ratios)
    return 0


def unmeasured(sides: list[str], settings: dict[str, Any]) -> list[str]:
    """In plain words, what this run says nothing about."""
    if not sides:
        return [
            "no GPU was used, so a tiny model runs on the CPU: speed, tokens/s, MFU and device memory at "
            "Llama-2-7B shapes remain unknown; only the equality of the losses is shown"
        ]
    lines = [
        f"{side} finds no GPU (is its CUDA build installed?): no ratio of the two sides"
        for side in ("ours", "peft")
        if side not in sides
    ]
    if settings["peak_tflops"] is None:
        lines.append("MFU: this device's peak is not known; give it with --peak-tflops")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
