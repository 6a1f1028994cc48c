"""What quantising the frozen base costs in validation loss: the sample's thread task over its tiny base.

    python tests/benchmarks/training/quantised_base.py --json out.json     # some five minutes on two cores

The same order three times (`quantization` none, int8, nf4), for as many steps as take the loss far from where
it began. Losses are of records held out by context, without dropout. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result

KINDS = ("none", "int8", "nf4")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--steps", type=at_least_one, default=150)
    parser.add_argument("--tokens", type=at_least_one, default=4096, help="of a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    return parser.parse_args()


def build_records(folder: Path) -> Path:
    """The sample's thread records, as its recipe makes them but for the dense leg."""
    from retrieval.build.build import build_record_files
    from retrieval.settings.context import ContextConfig

    threads = {
        "source": str(ROOT / "data" / "sample" / "threads.ndjson"),
        "format": "4chan",
        "n_contexts": 10,
        "legs": ["bm25", "recency", "mention", "opening"],
    }
    build_record_files(ContextConfig.model_validate({"test_share": 0.25, "threads": threads}), folder)
    return folder / "records.parquet"


def train(kind: str, records: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own: its first and last loss, and the last validation loss.

    Raises:
        SystemExit: the run failed.
    """
    order = {
        "model": str(ROOT / "data" / "tiny-llama"),
        "data": {
            "records": str(records),
            "tasks": ["threads"],
            "split": "train",
            "max_seq_len": 768,
            "tokens_per_batch": args.tokens,
            "validation_share": 0.2,
        },
        "lora": {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0},
        "optim": {"learning_rate": args.learning_rate, "schedule": "cosine", "warmup_ratio": 0.05},
        "quantization": kind,
        "max_steps": args.steps,
        "checkpoint_every": args.steps,
        "output_dir": str(folder / kind),
        "checkpoint_dir": str(folder / f"{kind}-checkpoints"),
    }
    spec = folder / f"{kind}.json"
    spec.write_text(json.dumps(order))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jora_core.commands.train", "--spec", str(spec)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"training over the base in {kind} failed:\n{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / kind / "metrics.jsonl").read_text().splitlines()]
    return {
        "base": kind,
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "validation_loss": rows[-1]["validation_loss"],
    }


def main() -> int:
    """Train, print, write."""
    args = arguments()
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = build_records(folder / "records")
        results = [train(kind, records, folder, args) for kind in KINDS]
    whole = results[0]["validation_loss"]
    ratios = {r["base"]: round(r["validation_loss"] / whole, 4) for r in results[1:]}
    print_table(
        [
            {
                "base": r["base"],
                "first step's loss": f"{r['first_loss']:.4f}",
                "validation loss": f"{r['validation_loss']:.4f}",
                "of the whole base's": f"{r['validation_loss'] / whole:.4f}",
            }
            for r in results
        ]
    )
    settings = {"steps": args.steps, "tokens": args.tokens, "learning_rate": args.learning_rate}
    write_result(args.json, about, settings, results, ratios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
