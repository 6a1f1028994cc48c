"""Model and learned fusion beside the fusion alone, on many logs that neither of them has seen.

    JORA_SHARED=../shared jora run flows/configs/smollm2-irc-channel.yaml
    JORA_SHARED=../shared python tests/benchmarks/training/more_logs.py --store runs --json out.json

Ten development logs do not separate two systems that answer most comments alike. The recipe trains on
20,000 comments, which are whole logs, and leaves more than half of the training logs out. Of those,
`--logs` are drawn by seed. The learned fusion is fitted again without them, the trained adapter is taken
as it is, and both are scored on `--replies` replies of the drawn logs. The weights come from the logs
that the training held back, as in the recipe. About half an hour on two cores.

The evaluation wants a phase that has trained. It goes on from the adapter for one step at a rate of 1e-12.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import pyarrow.parquet as pq
from harness import ROOT, at_least_one, machine, print_table, write_result
from search.irc_recall import data_folder, interval_cell
from training.real_learning import PHASE, THREADS, artifact_folder, run_jora

from flows.report.statistics_sections import TOGETHER, combined_differences

RECIPE = ROOT / "flows" / "configs" / "smollm2-irc-channel.yaml"
SYSTEMS = ("previous_post", "bm25", "fused", "learned", "phase1")
ENDING = ".ascii.txt"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--store", type=Path, required=True, help="store of the recipe's run")
    parser.add_argument("--adapter", type=Path, help="a `finetune-task` artifact, in place of the store's")
    parser.add_argument("--logs", type=at_least_one, default=40, help="logs to score (default 40)")
    parser.add_argument("--replies", type=at_least_one, default=8000, help="replies to score (default 8,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn logs (default 0)")
    return parser.parse_args()


def main() -> int:
    """Draw logs, score, print, write."""
    args, about = arguments(), machine()
    store = {"store": str(args.store.resolve())}
    adapter = args.adapter or artifact_folder(run_jora("train", store, RECIPE), "finetune-task")
    used = recipe_logs(artifact_folder(run_jora("context", store, RECIPE), "build-context"), adapter)
    logs = data_folder().resolve() / "train"
    others = sorted({path.name.removesuffix(ENDING) for path in logs.glob(f"*{ENDING}")} - used)
    drawn = random.Random(args.seed).sample(others, args.logs)
    print(f"{len(used)} logs of the recipe, {len(others)} others, {len(drawn)} of them drawn", flush=True)
    with tempfile.TemporaryDirectory() as name:
        copy_logs(logs, Path(name), drawn)
        settings = store | {
            f"{THREADS}.source": f"{name}/train",
            f"{THREADS}.test_source": f"{name}/test",
            f"{PHASE}.init_adapter": str(adapter.resolve()),
            f"{PHASE}.max_steps": "1",
            f"{PHASE}.evaluate_every": "1",
            f"{PHASE}.optim.learning_rate": "1e-12",
            "evaluate.max_records": str(args.replies),
            "evaluate.systems": f"[{','.join(SYSTEMS)}]",
        }
        for stage in ("convert", "context", "train"):
            run_jora(stage, settings, RECIPE)
        found = artifact_folder(run_jora("evaluate", settings, RECIPE), "evaluate")
    scores = json.loads((found / "metrics.json").read_text(encoding="utf-8"))
    results = [scored(scores, system) for system in (*SYSTEMS, TOGETHER)]
    compared = combined_differences(scores)["learned"]
    print_table([row(result) for result in results])
    print(f"\nreply@1 of both minus that of the fusion: {compared}")
    print(f"Brier scores and their difference: {scores['combined']['brier']}")
    print(f"Weights: {scores['combined']['weights']}")
    ratios = {"difference of reply@1": compared["value"]}
    facts = {"logs": drawn, "replies": scores["n"], "seed": args.seed}
    write_result(args.json, about, facts, [*results, compared, scores["combined"]], ratios)
    return 0


def recipe_logs(context: Path, adapter: Path) -> set[str]:
    """Return the training logs whose comments are the recipe's records, trained on or held back.

    Raises:
        SystemExit: the adapter was trained on other comments.
    """
    rows = pq.read_table(context / "records.parquet", columns=["id", "context_id", "split"]).to_pylist()
    training = {row["id"]: row["context_id"] for row in rows if row["split"] == "train"}
    trained = pq.read_table(adapter / "trained_records.parquet", columns=["id"]).column("id").to_pylist()
    if not set(trained) <= set(training):
        raise SystemExit(f"{adapter} was trained on comments that are no records of {RECIPE.name}")
    return set(training.values())


def copy_logs(logs: Path, folder: Path, drawn: Sequence[str]) -> None:
    """Copy the logs into `folder`: the drawn ones into `test`, all others into `train`."""
    for split in ("train", "test"):
        (folder / split).mkdir()
    for path in sorted(logs.iterdir()):
        name = path.name.removesuffix(ENDING).removesuffix(".annotation.txt")
        shutil.copy(path, folder / ("test" if name in drawn else "train"))


def scored(scores: Mapping[str, Any], system: str) -> dict[str, Any]:
    """Return the reply@1 and target@1 of a system."""
    found = scores["systems"][system]
    return {"system": system, "reply@1": found["reply@1"], "target@1": found["target@1"]}


def row(result: Mapping[str, Any]) -> dict[str, str]:
    """One row of the table."""
    return {"System": result["system"]} | {
        name: interval_cell(result[name]) for name in ("reply@1", "target@1")
    }


if __name__ == "__main__":
    raise SystemExit(main())
