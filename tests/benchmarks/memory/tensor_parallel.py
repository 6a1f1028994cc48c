"""Memory and collectives of a tensor-parallel LoRA step on Llama-2-7B shapes, compiled ahead of time.

    python tests/benchmarks/memory/tensor_parallel.py --json out.json     # no weights, no accelerator

Rank 16 on q and v, one row, an eighth of its tokens supervised. Each mesh is compiled in a process of
its own by `jora_core.planning.memory_plan`, as `jora memory` does. bytes@N is N times the bytes of a device
over those of one device alone, at the longest row. allreduce_per_layer@N counts what a layer's forward and
backward pass move in all-reduces of one activation [batch, tokens, width]; an all-gather or a reduce-scatter
of one counts half.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
SMALL = SHAPE | {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
}
SMALL |= {"num_key_value_heads": 8, "vocab_size": 2048}
KINDS = ("weights", "adapter", "activations", "logits", "workspace", "total")
# GB at the paper's workload, 512 tokens: our aim, and what JORA needs (its table 1).
PAPER = {1: (14.5, 23.1), 2: (7.5, 16.1), 4: (4.0, 11.5)}
PAPER_LENGTH = 512


def activation_all_reduces(rows: list[dict[str, Any]], activation_elements: int) -> float:
    """Return a layer's traffic in units of one all-reduce of an activation [B, T, D].

    An all-gather or a reduce-scatter moves half of its bytes and counts half. Arrays smaller than half of an
    activation, such as an adapter's [B, T, R], are not counted.
    """
    total = 0.0
    for row in rows:
        if 2 * row["elements"] >= activation_elements:
            weight = 1.0 if row["kind"] == "all-reduce" else 0.5
            total += row["per_layer"] * weight * row["elements"] / activation_elements
    return total


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--sequences", type=at_least_one, nargs="+", default=[512, 2048])
    parser.add_argument("--tensor", type=at_least_one, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument(
        "--remat", nargs="+", default=["dots", "full"], help="ratios of the first go by plain names"
    )
    parser.add_argument("--target", default="auto", help="compiler: auto, cuda or host")
    parser.add_argument(
        "--small", action="store_true", help="a model of 4 layers, to see that the script runs"
    )
    return parser.parse_args()


def compile_one(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The plan of one mesh, from a process of its own."""
    spec = folder / "spec.json"
    spec.write_text(json.dumps(settings | {"model": str(folder), "output_dir": str(folder / "out")}))
    command = [sys.executable, "-m", "jora_core.commands.memory", "--spec", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{settings}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((folder / "out" / "result.json").read_text())


def measure(folder: Path, options: argparse.Namespace, shape: dict[str, int]) -> list[dict[str, Any]]:
    """One result for each remat, length and mesh."""
    results = []
    for remat in options.remat:
        for length in options.sequences:
            for tensor in options.tensor:
                settings = {"mesh": {"tensor": tensor}, "seq_len": length, "remat": remat}
                plan = compile_one(folder, settings | {"target": options.target, "find_longest": False})
                result = {
                    "remat": remat,
                    "tokens": length,
                    "tensor": tensor,
                    "compiler": plan["compiler"]["target"],
                    "bytes": plan["bytes_per_device"],
                    "collectives": plan["collectives"],
                    "allreduce_per_layer": activation_all_reduces(
                        plan["collectives"], length * shape["hidden_size"]
                    ),
                    "unsplit_logits": plan["unsplit_logits"],
                    "largest_arrays": plan["largest_arrays"],
                }
                results.append(result)
                total = plan["bytes_per_device"]["total"] / 1e9
                print(f"{remat}, {length} tokens, tensor {tensor}: {total:.3f} GB", flush=True)
    return results


def row_of(result: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    counts: dict[str, int] = {}
    for row in result["collectives"]:
        counts[row["kind"]] = counts.get(row["kind"], 0) + row["per_layer"]
    moves = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    head = {name: str(result[name]) for name in ("remat", "tokens", "tensor")}
    sizes = {f"{kind} GB": f"{result['bytes'][kind] / 1e9:.3f}" for kind in KINDS}
    return (
        head | sizes | {"all-reduces": f"{result['allreduce_per_layer']:.2f}", "a layer's collectives": moves}
    )


def ratios_of(results: list[dict[str, Any]], remat: str, length: int) -> dict[str, float]:
    """bytes@N, and the traffic of a layer on four devices."""
    chosen = {r["tensor"]: r for r in results if r["remat"] == remat and r["tokens"] == length}
    if 1 not in chosen:
        return {}
    alone = chosen[1]["bytes"]["total"]
    ratios = {f"bytes@{n}": n * r["bytes"]["total"] / alone for n, r in chosen.items() if n > 1}
    return ratios | {
        f"allreduce_per_layer@{n}": r["allreduce_per_layer"] for n, r in chosen.items() if n == 4
    }


def main() -> None:
    """Compile, print, write; exit status 1 where logits are whole on one device of several."""
    options = arguments()
    shape = SMALL if options.small else SHAPE
    with tempfile.TemporaryDirectory(prefix="tensor-parallel-") as name:
        folder = Path(name)
        known = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
        (folder / "config.json").write_text(json.dumps(known | shape | {"max_position_embeddings": 4096}))
        results = measure(folder, options, shape)
    print_table([row_of(result) for result in results])
    for result in results:
        aim = PAPER.get(result["tensor"])
        if (
            result["remat"] == options.remat[-1]
            and result["tokens"] == PAPER_LENGTH
            and aim
            and not options.small
        ):
            total = result["bytes"]["total"] / 1e9
            print(f"paper's workload on {result['tensor']}: {total:.2f} GB, aim {aim[0]}, JORA {aim[1]}")
    last = results[-1]
    print(f"largest temporaries, {last['remat']}, {last['tokens']} tokens, tensor {last['tensor']}")
    for array in last["largest_arrays"]:
        print(f"  {array['bytes'] / 1e6:9.1f} MB  {array['shape']:26s} {array['operation'][-70:]}")
    ratios = {
        name if number == 0 else f"{name}/{remat}": value
        for number, remat in enumerate(options.remat)
        for name, value in ratios_of(results, remat, max(options.sequences)).items()
    }
    print(", ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
    settings = {name: value for name, value in vars(options).items() if name != "json"} | {"shape": shape}
    write_result(options.json, machine(), settings, results, ratios)
    if whole := [r for r in results if r["unsplit_logits"]]:
        raise SystemExit(f"logits are whole on each device: {whole[0]['unsplit_logits']}")


if __name__ == "__main__":
    main()
