"""What sharing contexts gives the embedded sample: the same pipeline with and without it, seed by seed.

    python tests/benchmarks/training/sample_sharing.py --json out.json     # ten minutes on two cores

Phase 2 as the recipe has it (posts picked by retrieval, contexts shared), the same with `sharing: off`, and
apart in larger batches until it scores the same. Seconds are those of the phase's training, program start and
compilation included; scores are of held-out comments. The sides take turns, a seed a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result

RECIPE = ROOT / "flows" / "configs" / "sample.yaml"
PHASE = "finetune-task"
SIDES: dict[str, dict[str, str]] = {
    "shared": {},
    "apart": {"sharing": "off"},
    "apart, larger batches": {"sharing": "off", "tokens_per_batch": "4096", "max_steps": "640"},
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--rounds", type=at_least_one, default=2, help="seeds")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    return parser.parse_args()


def run(side: str, seed: int, store: Path) -> dict[str, Any]:
    """One pipeline; what is equal for all sides is taken from the store.

    Raises:
        SystemExit: the pipeline failed.
    """
    changes = {f"phases.{PHASE}.{key}": value for key, value in SIDES[side].items()}
    changes |= {"store": str(store), "seed": str(seed)}
    command = [sys.executable, "-m", "flows.cli", "run", str(RECIPE), "--json"]
    command += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the pipeline failed ({side}, seed {seed}):\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    (folder,) = (Path(stage["path"]) for stage in found["stages"] if stage["stage"] == PHASE)
    trained = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    score = found["evaluation"]["systems"]["both_phases"]["reply@1"]
    return {
        "side": side,
        "seed": seed,
        "steps": trained["steps"],
        "seconds": trained["seconds_total"],
        "tokens": trained["tokens"],
        "records": sum(row["records"] for row in rows),
        "reply@1": score["value"],
        "interval": [score["low"], score["high"]],
    }


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load_before']}\n")
    with tempfile.TemporaryDirectory() as name:
        results = [run(side, seed, Path(name)) for seed in range(args.rounds) for side in args.sides]
    by_side = {side: [r for r in results if r["side"] == side] for side in args.sides}
    print_table(
        [
            {
                "phase 2": side,
                "steps": str(mine[0]["steps"]),
                "records a step": f"{mine[0]['records'] / mine[0]['steps']:.1f}",
                "records": f"{mine[0]['records']:,}",
                "tokens": f"{mine[0]['tokens']:,}",
                "seconds": " ".join(f"{r['seconds']:.0f}" for r in mine),
                "reply@1": ", ".join(
                    f"{r['reply@1']:.3f} [{r['interval'][0]:.3f}-{r['interval'][1]:.3f}]" for r in mine
                ),
            }
            for side, mine in by_side.items()
        ]
    )
    shared = by_side.get("shared", [])
    ratios = {
        f"seconds {side}/shared": round(
            statistics.median(a["seconds"] / b["seconds"] for a, b in zip(mine, shared, strict=True)), 3
        )
        for side, mine in by_side.items()
        if side != "shared" and shared
    }
    write_result(args.json, about, {"rounds": args.rounds}, results, ratios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
