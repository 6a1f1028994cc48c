"""Train the tiny base model from scratch: `python data/make_base.py [--work .base] [--steps 3500]`.

Fits the tokenizer, writes the lessons, and has the project's own training core learn all parameters from
random weights (`trainable: all` is a mode of the same loop that trains adapters). A killed run goes on from
its last checkpoint when started again. The weights, and a note of how they were made, end up in
`data/tiny-llama/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from make_base_corpus import write_corpus

HERE = Path(__file__).parent
MODEL = HERE / "tiny-llama"


def spec(work: Path, steps: int) -> dict:
    """The order for `python -m jora_core.train`."""
    return {
        "model": str(MODEL),
        "init": "random",
        "trainable": "all",
        "data": {
            "records": str(work / "lessons.parquet"),
            "max_seq_len": 768,
            "tokens_per_batch": 4096,
            "curriculum": "file",
        },
        "optim": {
            "learning_rate": 3e-3,
            "warmup_ratio": 0.03,
            "beta2": 0.95,
            "weight_decay": 0.02,
            "min_lr_ratio": 0.1,
        },
        "max_steps": steps,
        "checkpoint_every": 200,
        "seed": 1,
        "output_dir": str(work / "output"),
        "checkpoint_dir": str(work / "checkpoints"),
        "compilation_cache_dir": str(work / "compiled"),
    }


def loss_curve(log: Path, points: int = 16) -> str:
    """A Markdown table of the mean loss over `points` equal stretches of the run."""
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    size = max(1, len(losses) // points)
    rows = [
        f"| {start + 1}–{min(start + size, len(losses))} | {sum(part) / len(part):.3f} |"
        for start in range(0, len(losses), size)
        if (part := losses[start : start + size])
    ]
    return "\n".join(["| steps | mean loss |", "| --- | --- |", *rows])


def note(work: Path, rows: int, steps: int) -> str:
    """How the weights were made, from what the run itself wrote down."""
    result = json.loads((work / "output" / "result.json").read_text())
    return (
        "# How this model was made\n\n"
        f"`python data/make_base.py --rows {rows} --steps {steps}` on {platform.machine()}, "
        f"{result['steps']} steps, {result['seconds'] / 60:.0f} minutes, "
        f"{result['tokens']:,} tokens of which {result['supervised_tokens']:,} supervised.\n\n"
        "A Llama of random weights, taught by the lessons of `data/make_base_corpus.py`: copying, finding "
        "the post that mentions a word, then language about generated threads, tables and documents. "
        "None of it asks which post a comment answers.\n\n"
        + loss_curve(work / "output" / "metrics.jsonl")
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / ".base")
    parser.add_argument("--rows", type=int, default=75_000)
    parser.add_argument("--steps", type=int, default=3500)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (MODEL / "tokenizer.json").is_file():
        subprocess.run([sys.executable, str(HERE / "make_tokenizer.py")], check=True)
    if not (work / "lessons.parquet").is_file():
        write_corpus(work / "lessons.parquet", seed=1, count=args.rows)
    order = work / "spec.json"
    order.write_text(json.dumps(spec(work, args.steps), indent=2))
    subprocess.run([sys.executable, "-m", "jora_core.train", "--spec", str(order)], check=True)
    shutil.copyfile(work / "output" / "model.safetensors", MODEL / "model.safetensors")
    (MODEL / "TRAINING.md").write_text(note(work, args.rows, args.steps), encoding="utf-8")
    print(f"wrote {MODEL}")
