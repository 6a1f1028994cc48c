"""What helps a real pretrained model to learn whom a message answers: short trainings, one change each.

    jora fetch smollm2-135m
    python tests/benchmarks/training/real_learning.py --json out.json        # an hour and a half on two cores

Each side trains flows/configs/smollm2-irc.yaml for the same small number of tokens (`--steps` of the recipe's
microbatches) and chooses the answered post of drawn development comments. Sides whose prompts begin alike are
scored on the same comments. Seconds are of processor time of the training alone, with its start and
compilation, because other programs may use the machine. `Learned fusion` has no model, on the same comments.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result
from search.irc_recall import interval_cell

RECIPE = ROOT / "flows" / "configs" / "smollm2-irc.yaml"
THREADS, PHASE = "context.threads", "phases.finetune-task"
WINDOWS = {
    f"{THREADS}.contexts": "window",
    f"{THREADS}.n_contexts": "20",
    f"{THREADS}.max_context_tokens": "null",
    f"{PHASE}.max_seq_len": "1024",
    "evaluate.max_seq_len": "1024",
}
SIDES: dict[str, dict[str, str]] = {
    "the recipe": {},
    "numbered by rank": {f"{THREADS}.numbering": "rank"},
    "windows of 20": WINDOWS,
    "windows, exact products": WINDOWS | {"model.matmul_precision": "default"},
    "learning rate / 3": {f"{PHASE}.optim.learning_rate": "2.0e-4"},
    "learning rate x 3": {f"{PHASE}.optim.learning_rate": "1.8e-3"},
    "adapters on q and v": {f"{PHASE}.lora.target_modules": "[q_proj,v_proj]"},
    "rank 64": {f"{PHASE}.lora.r": "64", f"{PHASE}.lora.lora_alpha": "128"},
    "Alpaca's headings": {"prompt.template": "alpaca"},
    "short examples first": {f"{PHASE}.curriculum": "length"},
    "apart": {f"{PHASE}.sharing": "off"},
    "steps of 4,096 tokens": {f"{PHASE}.tokens_per_batch": "4096"},
    "bfloat16": {"model.dtype": "bfloat16"},
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--steps", type=at_least_one, default=40, help="steps of 1,024 tokens (default 40)")
    parser.add_argument("--records", type=at_least_one, default=300, help="comments to score (default 300)")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), metavar="SIDE")
    parser.add_argument("--store", type=Path, help="folder of the artifacts, to go on where a run ended")
    return parser.parse_args()


def run(side: str, args: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Train and score one side; what it shares with others is taken from the store."""
    changes = SIDES[side]
    tokens = int(changes.get(f"{PHASE}.tokens_per_batch", "1024"))
    settings = {
        "store": str(store),
        f"{PHASE}.max_steps": str(max(1, args.steps * 1024 // tokens)),
        f"{PHASE}.gradient_accumulation_steps": "1",
        f"{PHASE}.validation_share": "0",
        f"{PHASE}.evaluate_every": "null",
        "evaluate.max_records": str(args.records),
        "evaluate.combine_records": "0",
        **changes,
    }
    run_jora("convert", settings)
    run_jora("context", settings)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    trained = artifact_folder(run_jora("train", settings), "finetune-task")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = run_jora("evaluate", settings)["evaluation"]["systems"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "side": side,
        "steps": result["steps"],
        "records": sum(row["records"] for row in rows),
        "tokens": result["tokens"],
        "cpu_seconds": round(cpu, 1),
        "loss": result["mean_loss_last_10"],
        **{system: scores[system]["reply@1"] for system in ("base", "phase1", "learned")},
    }


def run_jora(command: str, settings: Mapping[str, str], recipe: Path = RECIPE) -> dict[str, Any]:
    """Run one command on a recipe; return what it prints as JSON.

    Args:
        command: such as `train`.
        settings: values by their dotted names.
        recipe: the configuration.

    Raises:
        SystemExit: the command failed.
    """
    words = [sys.executable, "-m", "flows.cli", command, str(recipe), "--json"]
    words += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"jora {command} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def artifact_folder(outcome: Mapping[str, Any], stage: str) -> Path:
    """Return the folder of a stage's artifact, from what `run_jora` returned."""
    return next(Path(found["path"]) for found in outcome["stages"] if found["stage"] == stage)


def _row(result: Mapping[str, Any]) -> dict[str, str]:
    """One row of the table in docs/learning.md."""

    return {
        "Change": result["side"],
        "Steps": str(result["steps"]),
        "Comments": f"{result['records']:,}",
        "Tokens": f"{result['tokens']:,}",
        "CPU s": f"{result['cpu_seconds']:.0f}",
        "Tokens a CPU s": f"{result['tokens'] / result['cpu_seconds']:.0f}",
        "Loss": f"{result['loss']:.3f}",
        "Base": interval_cell(result["base"]),
        "Tuned": interval_cell(result["phase1"]),
        "Learned fusion": interval_cell(result["learned"]),
    }


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load_before']}\n", flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for side in args.sides:
            results.append(run(side, args, (args.store or Path(name)).resolve()))
            # A side takes minutes: each is shown and kept as soon as it is known.
            print(json.dumps(results[-1]), flush=True)
            _write(args, about, results)
    print()
    print_table([_row(result) for result in results])
    return 0


def _write(args: argparse.Namespace, about: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    settings = {"steps": args.steps, "records": args.records}
    ratios = {f"reply@1 {result['side']}": result["phase1"]["value"] for result in results}
    write_result(args.json, about, settings, list(results), ratios)


if __name__ == "__main__":
    raise SystemExit(main())
