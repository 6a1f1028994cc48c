"""Records per second of an epoch in which examples share contexts: ours against transformers + peft, and TRL.

    JORA_SHARED=../shared python tests/benchmarks/training/raft_epoch.py --json out.json

It takes 15 minutes on two cores. 400 questions over tables (WikiTableQuestions, up to 2,048 tokens), 400 over
windows of 100 chat messages (Ubuntu IRC), and the same replies where each sees only the messages before it;
whole contexts, Llama 2's tokenizer. Every side plans its own epoch over the same records; its microbatches
are sorted by size, and evenly spread ones are timed, in rounds in which the sides take turns. A round's
seconds a token, padding included, times the epoch's tokens are the epoch's seconds; the rate of a side is the
median of its rounds, and a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import numpy as np
from harness import (
    ROOT,
    SIDE_SCRIPTS,
    Worker,
    WorkerFailed,
    at_least_one,
    check_losses,
    machine,
    print_table,
    take_turns,
    write_result,
)
from sides.raft_records import Context, chat_contexts, growing_contexts, table_contexts, take
from sides.workload import TINY, Tokenised, write_config, write_examples

MIB = 2**20
BATCH = 4  # records of a batch of peft's
CPU_ONLY = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
LLAMA_58M = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
# Longest example, microbatches a round of (ours shared, ours apart, peft, trl).
DATA: dict[str, tuple[Callable[[Path, int], Iterable[Context]], int, tuple[int, int, int, int]]] = {
    "wikitables": (table_contexts, 2048, (1, 1, 3, 1)),
    "irc": (chat_contexts, 3584, (1, 1, 1, 1)),
    "growing": (growing_contexts, 3584, (1, 1, 1, 1)),
}
TOLERANCE = 1e-4  # of the losses, relative, before anything is timed


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--sides", nargs="+", choices=["shared", "unshared", "peft", "trl"],
                        default=["shared", "unshared", "peft", "trl"])  # fmt: skip
    parser.add_argument("--records", type=at_least_one, default=400)
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--tokens-per-batch", type=at_least_one, default=8192, help="of ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few records, to try the script")
    return parser.parse_args()


def tokenised(shared: Path, name: str, args: argparse.Namespace) -> list[Tokenised]:
    """The records of one data set as token ids, laid out as training lays them out."""
    from jora_core.data.tokenizer import load_tokenizer
    from jora_core.specs.common import ALPACA_SHORT

    make, longest, _ = DATA[name]
    tokenizer = load_tokenizer(shared / "models" / "llama2-tokenizer", 32000)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]

    def encoded(context: Context) -> list[Tokenised]:
        prompts = tokenizer.encode_batch(
            [ALPACA_SHORT.format(instruction=row["instruction"], input=row["input"]) for row in context]
        )
        answers = tokenizer.encode_batch([row["output"] for row in context])
        return [
            Tokenised(
                row["id"],
                row["context_id"],
                np.concatenate([bos, prompt]).astype(np.int32),
                np.append(answer, tokenizer.eos_id).astype(np.int32),
            )
            for row, prompt, answer in zip(context, prompts, answers, strict=True)
        ]

    def fits(context: Context) -> bool:
        return all(len(row.prompt) + len(row.answer) <= longest for row in encoded(context))

    contexts = take(make(shared, args.seed), args.records, fits)
    rows = [row for context in contexts for row in encoded(context)]
    if args.tiny:  # another vocabulary; what is equal stays equal
        vocab = TINY["vocab_size"]
        rows = [r._replace(prompt=r.prompt % vocab, answer=r.answer % vocab) for r in rows]
    return rows


def made_up(prefix: int, suffixes: int, contexts: int, seed: int) -> list[Tokenised]:
    """Contexts of random tokens, each with so many questions of 32 tokens and answers of 8."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 32000, count, dtype=np.int32)

    rows = []
    for context in range(contexts):
        start = ids(prefix)
        rows += [
            Tokenised(f"{context}-{n}", str(context), np.concatenate([start, ids(32)]), ids(8))
            for n in range(suffixes)
        ]
    return rows


def plans(
    name: str, base: dict[str, Any], per_round: Sequence[int], args: argparse.Namespace
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Side → its script and settings."""
    shared, apart, theirs, trl = per_round
    ours = {**base, "tokens_per_batch": max(args.tokens_per_batch, base["sequence"])}
    found = {
        "shared": ("raft_ours.py", {**ours, "sharing": "auto", "per_round": shared}),
        "unshared": ("raft_ours.py", {**ours, "sharing": "off", "per_round": apart}),
        "peft": ("raft_theirs.py", {**base, "packed": 0, "per_round": theirs}),
        "trl": ("raft_theirs.py", {**base, "packed": base["sequence"], "per_round": trl}),
    }
    if "trl" in args.sides and importlib.util.find_spec("trl") is None:
        print(f"{name}: TRL is not installed (pip install '.[bench]'); its packed rows are not measured")
        del found["trl"]
    return {side: plan for side, plan in found.items() if side in args.sides}


def measure(
    name: str, rows: list[Tokenised], sides: dict[str, tuple[str, dict[str, Any]]], env: dict[str, str],
    rounds: int, tolerance: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Check that the sides compute the same loss, warm up, take turns: a result a side."""
    smallest = min(
        {row.context for row in rows}, key=lambda c: sum(len(r.prompt) for r in rows if r.context == c)
    )
    ids = [row.id for row in rows if row.context == smallest][:BATCH]
    workers: list[Worker] = []
    try:
        for side, (script, settings) in sides.items():
            workers.append(Worker(side, SIDE_SCRIPTS / script, settings, env))
            workers[-1].answer()
        losses = {worker.name: worker.ask("check", ids=ids) for worker in workers}
        assert {found["records"] for found in losses.values()} == {len(ids)}, losses
        check_losses({side: [found["loss"]] for side, found in losses.items()}, tolerance)
        alive = [worker for worker in workers if "error" not in worker.ask("warm")]
        turns = take_turns(alive, rounds)
        results = []
        for worker in workers:
            mine = turns.get(worker.name, [])
            if not mine or "error" in mine[-1]:
                results.append({"data": name, "side": worker.name, "error": "out of memory"})
                continue
            about = worker.ask("about")
            epochs = [about["padded"] * turn["seconds"] / turn["padded"] for turn in mine]
            rates = [about["records"] / seconds for seconds in epochs]
            results.append(
                {
                    "data": name,
                    "side": worker.name,
                    "records_per_second": statistics.median(rates),
                    "rates": rates,
                    "seconds": sum(turn["seconds"] for turn in mine),
                    "records_timed": sum(turn["records"] for turn in mine),
                    "padded_timed": sum(turn["padded"] for turn in mine),
                    "check_loss": losses[worker.name]["loss"],
                    **about,
                    **worker.ask("memory"),
                }
            )
        return results
    finally:
        for worker in workers:
            worker.close()


def ratios_of(name: str, results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rates of ours with sharing over the others', and its memory over peft's."""
    by_side = {result["side"]: result for result in results if "error" not in result}
    ours = by_side.get("shared")
    if ours is None:
        return {}
    # Round by round, so that what slows the machine for a while slows both sides of a quotient.
    found = {
        f"{name}/{side}": round(
            statistics.median(a / b for a, b in zip(ours["rates"], by_side[side]["rates"], strict=True)), 3
        )
        for side in ("peft", "unshared", "trl")
        if side in by_side
    }
    if "peft" in by_side:
        peak = "device_peak_bytes" if "device_peak_bytes" in ours else "peak_above_imports_bytes"
        found[f"memory/peft {name}"] = round(ours[peak] / by_side["peft"][peak], 3)
    return found


def explanation(name: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """What the ratio to peft is made of: tokens not computed again, padding, and time a token."""
    by_side = {result["side"]: result for result in results if "error" not in result}
    if not {"shared", "unshared", "peft"} <= set(by_side):
        return []
    ours, apart, theirs = (by_side[side] for side in ("shared", "unshared", "peft"))
    padding = theirs["padded"] / apart["slots"] / (ours["padded"] / ours["slots"])
    token = [r["records"] / (r["records_per_second"] * r["padded"]) for r in (ours, apart, theirs)]
    return [
        f"{name}: sharing computes {apart['slots'] / ours['slots']:.2f}x fewer tokens, packing pads "
        f"{padding:.2f}x less than batches of {BATCH}",
        f"{name}: a token takes {token[2] / token[0]:.2f}x less time than peft's, and "
        f"{token[0] / token[1]:.2f}x the time of ours apart",
    ]


def rows_of(results: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Results as the rows of a table."""
    rows = []
    for result in results:
        if "error" in result:
            rows.append({**dict.fromkeys(rows[0] if rows else (), ""), "data": result["data"],
                         "side": f"{result['side']}: {result['error']}"})  # fmt: skip
            continue
        peak = result.get("device_peak_bytes") or result["peak_above_imports_bytes"]
        rows.append(
            {
                "data": result["data"],
                "side": result["side"],
                "records/s": f"{result['records_per_second']:.3f}",
                "rounds": " ".join(f"{rate:.3f}" for rate in result["rates"]),
                "tokens of the epoch, padded": f"{result['padded']:,}",
                "us a padded token": f"{1e6 * result['seconds'] / result['padded_timed']:.0f}",
                "peak MiB": f"{peak / MIB:.0f}",
            }
        )
    return rows


def base_settings(
    args: argparse.Namespace, folder: Path, shape: dict[str, int], longest: int
) -> dict[str, Any]:
    """What all sides are told."""
    return {
        "shape": shape,
        "folder": str(folder),
        "examples": str(folder / "examples.npz"),
        "sequence": longest,
        "batch": BATCH,
        "rank": 16,
        "alpha": 16,
        "dtype": "float32",
        "device": "cpu",
        "learning_rate": 1e-4,
        "seed": args.seed,
        "rounds": args.rounds,
        "checkpointing": False,
    }


def measured(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The data sets, one after the other."""
    shared = Path(os.environ.get("JORA_SHARED", ROOT.parent / "shared"))
    if not (shared / "data").is_dir():
        raise SystemExit(f"no data in {shared}; set JORA_SHARED to the folder that has data/ and models/")
    shape = TINY if args.tiny else LLAMA_58M
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for name in args.data:
        with tempfile.TemporaryDirectory() as made:
            folder, (_, longest, per_round) = Path(made), DATA[name]
            rows = tokenised(shared, name, args)
            write_config(folder, shape, longest)
            write_examples(folder / "examples.npz", rows)
            base = base_settings(args, folder, shape, longest)
            found = measure(name, rows, plans(name, base, per_round, args), CPU_ONLY, args.rounds, TOLERANCE)
        about = {"records": len(rows), "contexts": len({row.context for row in rows})}
        results += [result | about for result in found]
        ratios |= ratios_of(name, found)
        print_table(rows_of(found))
        print("\n".join(explanation(name, found)), end="\n\n")
    memory = [value for name, value in ratios.items() if name.startswith("memory/peft")]
    return results, ratios | ({"memory/peft": max(memory)} if memory else {})


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load_before']}\n")
    try:
        results, ratios = measured(args)
    except WorkerFailed as err:
        raise SystemExit(str(err)) from None
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.2f}")
    if about["load_before"] > 0.5:
        print(f"note: the machine was not idle before the run (load {about['load_before']})", file=sys.stderr)
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    write_result(args.json, about, settings, results, ratios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
