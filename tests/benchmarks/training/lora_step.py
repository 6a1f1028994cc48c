"""One LoRA training step on the CPU: ours against transformers + peft, interleaved in one run.

    python tests/benchmarks/training/lora_step.py --json out.json  # the comparison, six minutes on two cores
    python tests/benchmarks/training/lora_step.py --ablate         # what each technique of ours gives
    python tests/benchmarks/training/lora_step.py --precisions     # ours with exact and bfloat16 products

Model: a random float32 Llama of 58M parameters, rank 16 on q and v. The other side runs with gradient
checkpointing off and on, as two workers of the same run, and is judged by the faster. Memory is the peak
resident set of a side's process, from after its imports to the end: weights, compiling and all steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import (
    SIDE_SCRIPTS,
    Worker,
    at_least_one,
    check_losses,
    machine,
    median,
    print_table,
    take_turns,
    write_result,
)
from sides.workload import supervised_tokens, write_config

TOLERANCE = 1e-4  # of the losses, relative, before anything is timed
ROUNDED_TOLERANCE = 1e-2  # where one side's products round to bfloat16
MIB = 2**20
# Huge pages are what the pipeline gives its children (flows/children/supervised_process.py); here both sides
# get them.
CPU_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--ablate", action="store_true", help="compare our own step's variants instead")
    parser.add_argument("--precisions", action="store_true", help="compare our products in two types instead")
    parser.add_argument("--profile", action="store_true", help="tell our step's time by kind of operation")
    parser.add_argument("--sequences", type=at_least_one, nargs="+", default=[256, 1024], help="of 64 each")
    parser.add_argument("--steps", type=at_least_one, default=6, help="timed steps of each side")
    parser.add_argument(
        "--warmup", type=at_least_one, default=2, help="untimed steps before those, with compiling"
    )
    parser.add_argument("--batch", type=at_least_one, default=4)
    parser.add_argument(
        "--supervised", type=supervised_tokens, default=16, help="last tokens of a sequence with loss, or all"
    )
    parser.add_argument("--remat", help="our recomputation, a value of TrainSpec.remat; default: its default")
    parser.add_argument("--rank", type=at_least_one, default=16)
    parser.add_argument("--seed", type=int, default=0)
    shape = parser.add_argument_group("shape of the model")
    for name, size in (("hidden", 512), ("heads", 8), ("kv-heads", 8), ("layers", 8),
                       ("feed-forward", 1408), ("vocab", 32000)):  # fmt: skip
        shape.add_argument(f"--{name}", type=at_least_one, default=size)
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What both sides are told, but for the sequence length."""
    return {
        "shape": {
            "hidden_size": args.hidden,
            "intermediate_size": args.feed_forward,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.heads,
            "num_key_value_heads": args.kv_heads,
            "vocab_size": args.vocab,
        },
        "batch": args.batch,
        "supervised": args.supervised,
        "rank": args.rank,
        "alpha": args.rank,
        "dtype": "float32",
        "device": "cpu",
        "learning_rate": 1e-4,
        "seed": args.seed,
        "remat": args.remat,
    }


def measure(
    workers: list[Worker], warmup: int, steps: int, tolerance: float = TOLERANCE
) -> dict[str, dict[str, Any]]:
    """Warm up, compare losses, then time: a result for each worker.

    Args:
        workers: the started sides.
        warmup: steps before the timed ones.
        steps: timed steps.
        tolerance: largest relative difference between the sides' losses.

    Raises:
        SystemExit: the losses differ by more.
    """
    for worker in workers:
        worker.answer()
    before = take_turns(workers, warmup)
    check_losses({name: [t["loss"] for t in turns] for name, turns in before.items()}, tolerance)
    for worker in workers:
        worker.ask("warm")
    timed = take_turns(workers, steps, first=warmup)
    losses = {name: [t["loss"] for t in before[name] + turns] for name, turns in timed.items()}
    worst = check_losses(losses, tolerance)
    return {
        worker.name: {
            "side": worker.name,
            "median_seconds": median(timed[worker.name]),
            "seconds": [turn["seconds"] for turn in timed[worker.name]],
            "losses": losses[worker.name],
            "largest_loss_difference": worst,
            **worker.ask("memory"),
        }
        for worker in workers
    }


def run(
    plan: dict[str, tuple[str, dict[str, Any]]], args: argparse.Namespace, tolerance: float = TOLERANCE
) -> dict[str, dict[str, Any]]:
    """Start the workers of a plan, name → (script, settings), measure them together, end them."""
    workers: list[Worker] = []
    try:
        for name, (script, settings) in plan.items():
            workers.append(Worker(name, SIDE_SCRIPTS / script, settings, CPU_ONLY))
        return measure(workers, args.warmup, args.steps, tolerance)
    finally:
        for worker in workers:
            worker.close()


def compare(base: dict[str, Any], args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Ours against theirs at every sequence length: results and ratios."""
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for sequence in args.sequences:
        settings = {**base, "sequence": sequence}
        plan = {
            "ours": ("ours.py", settings),
            "peft, checkpointing off": ("theirs.py", {**settings, "checkpointing": False}),
            "peft, checkpointing on": ("theirs.py", {**settings, "checkpointing": True}),
        }
        found = run(plan, args)
        ours = found["ours"]
        theirs = min((r for r in found.values() if r is not ours), key=lambda r: r["median_seconds"])
        for result in found.values():
            judged = result is ours or result is theirs
            results.append({"sequence": sequence, **result, "in_ratio": judged})
        peak = "peak_above_imports_bytes"
        ratios[f"speed@{sequence}"] = round(theirs["median_seconds"] / ours["median_seconds"], 3)
        ratios[f"memory@{sequence}"] = round(ours[peak] / theirs[peak], 3)
        print_table(rows_of(results[-len(found) :], ours))
        print(
            f"speed@{sequence} {ratios[f'speed@{sequence}']:.2f}x (theirs/ours, more is better)   "
            f"memory@{sequence} {ratios[f'memory@{sequence}']:.2f} (ours/theirs, less is better)\n"
        )
    return results, ratios


def variants(base: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Our step with one technique exchanged at a time; the names say what differs from the first."""
    from typing import get_args

    from jora_core.specs.train import TrainSpec

    field = TrainSpec.model_fields["remat"]
    used = base["remat"] or field.default
    others = [str(value) for value in get_args(field.annotation) if value not in (used, "offload")]
    return {
        f"as it is (remat {used})": {},
        "forward only": {"only": "forward"},
        "logits of all tokens": {"logits": "all"},
        "plain attention": {"attention": "plain"},
        **{f"attention blocks of {size}": {"block": size} for size in (128, 512)},
        **{f"remat {value}": {"remat": value} for value in others},
    }


def ablate(base: dict[str, Any], args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Variants of ours, taking turns: results, and each variant's time and memory over those of the first."""
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for sequence in args.sequences:
        changes = variants(base)
        forward = {name: c for name, c in changes.items() if "only" in c}
        steps = {name: c for name, c in changes.items() if name not in forward}
        settings = {**base, "sequence": sequence}
        found = run({name: ("ours.py", {**settings, **c}) for name, c in steps.items()}, args)
        # Trains nothing, so its losses cannot be compared with those of steps: measured on its own.
        found |= run({name: ("ours.py", {**settings, **c}) for name, c in forward.items()}, args)
        first = next(iter(found.values()))
        for name, result in found.items():
            results.append({"sequence": sequence, **result})
            ratios[f"time {name}@{sequence}"] = round(result["median_seconds"] / first["median_seconds"], 3)
        print_table(rows_of(results[-len(found) :], first))
        print()
    return results, ratios


def precisions(
    base: dict[str, Any], args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Our step with exact products and with products in bfloat16, taking turns."""
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for sequence in args.sequences:
        settings = {**base, "sequence": sequence}
        sides = {"ours": {}, "ours, products in bfloat16": {"matmul_precision": "bfloat16"}}
        plan = {name: ("ours.py", {**settings, **change}) for name, change in sides.items()}
        exact, rounded = run(plan, args, ROUNDED_TOLERANCE).values()
        results += [{"sequence": sequence, **exact}, {"sequence": sequence, **rounded}]
        ratios[f"bfloat16@{sequence}"] = round(exact["median_seconds"] / rounded["median_seconds"], 3)
        print_table(rows_of(results[-2:], exact))
        print(f"bfloat16@{sequence} {ratios[f'bfloat16@{sequence}']:.2f}x (exact/rounded, more is better)\n")
    return results, ratios


def profile(base: dict[str, Any], args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Our step's gradient by kind of operation, exact and with products in bfloat16."""
    results: list[dict[str, Any]] = []
    for sequence in args.sequences:
        for precision in ("default", "bfloat16"):
            settings = {**base, "sequence": sequence, "matmul_precision": precision}
            worker = Worker("ours", SIDE_SCRIPTS / "ours.py", settings, CPU_ONLY)
            try:
                worker.answer()
                found = worker.ask("profile", step=0)
            finally:
                worker.close()
            results.append({"sequence": sequence, "matmul_precision": precision, **found})
    kinds = results[0]["by_kind"]
    names = [f"{result['sequence']}, {result['matmul_precision']}" for result in results]
    by_name = dict(zip(names, results, strict=True))
    print_table(
        [
            {"operations of": kind, **{n: f"{1000 * r['by_kind'][kind]:.0f} ms" for n, r in by_name.items()}}
            for kind in kinds
        ]
    )
    # Of all threads, with what the profiler adds.
    totals = {f"processor@{n}": sum(r["by_kind"].values()) for n, r in by_name.items()}
    return results, {**totals, **{f"wall@{n}": r["seconds"] for n, r in by_name.items()}}


def rows_of(results: list[dict[str, Any]], first: dict[str, Any]) -> list[dict[str, str]]:
    """Results as the rows of a table."""
    return [
        {
            "sequence": str(result["sequence"]),
            "side": result["side"],
            "median step s": f"{result['median_seconds']:.3f}",
            "time / first": f"{result['median_seconds'] / first['median_seconds']:.2f}",
            "peak MiB": f"{result['peak_bytes'] / MIB:.0f}",
            "above imports": f"{result['peak_above_imports_bytes'] / MIB:.0f}",
            "timed steps only": f"{result['steps_above_imports_bytes'] / MIB:.0f}",
        }
        for result in results
    ]


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    about = machine()
    base = settings_of(args)
    others = {"ablate": ablate, "precisions": precisions, "profile": profile}
    chosen = next((other for name, other in others.items() if getattr(args, name)), compare)
    supervised = "all tokens" if not args.supervised else f"the last {args.supervised} tokens"
    print(
        f"{about['processor']}, {about['cores']} cores, load {about['load_before']}; batch {args.batch}, "
        f"{supervised} of each sequence supervised, float32\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), base["shape"], max(args.sequences))
        results, ratios = chosen({**base, "folder": folder}, args)
    if about["load_before"] > 0.5:
        print(f"note: the machine was not idle before the run (load {about['load_before']})", file=sys.stderr)
    timing = {"sequences": args.sequences, "warmup": args.warmup, "steps": args.steps}
    write_result(args.json, about, {**base, **timing, "compared": chosen.__name__}, results, ratios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
