"""How often retrieval finds the post that a comment of the sample answers: recall by leg, fused and learned.

    python tests/benchmarks/search/sample_recall.py [--json FILE]

It builds the records of the thread task of flows/configs/sample.yaml with `fusion: learned` and the code of
`build-context`, and reads the rankings of the held-out split. These threads are written by a script
(data/make_sample.py), so the figures tell how a fusion learns another kind of conversation than IRC, and
nothing about real ones. The 95 % intervals are those of the evaluation, over threads (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, machine, print_table, write_result
from search.irc_recall import DEPTHS, measure, table_row

from retrieval.build.build import RANKINGS, build_record_files
from retrieval.build.record_files import read_rankings
from retrieval.settings.context import ContextConfig
from retrieval.settings.legs import LEGS
from retrieval.settings.tasks import ThreadsTask

RECIPE = ROOT / "flows" / "configs" / "sample.yaml"


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description="Recall of the legs of retrieval on the sample")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    config = recipe_config()
    results, learned = recalls(config)
    print_table([table_row(result) for result in results])
    rows = {"training threads, held back": learned, "held-out threads": learned["test"]}
    keys = ("link_f1", "reply@1", "start_f1")
    print_table(
        [{"Links": name, **{key: f"{found[key]:.3f}" for key in keys}} for name, found in rows.items()]
    )
    ratios = {f"{r['leg']}@{k}": r[f"recall@{k}"]["value"] for r in results for k in DEPTHS}
    settings = {"legs": list(config.tasks["threads"].fused_legs), "learned_fusion": learned}
    write_result(args.json, about, settings, results, ratios)


def recipe_config() -> ContextConfig:
    """The recipe's context with its thread task alone, and learned fusion."""
    import yaml

    written = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    context = written["context"]
    task = context["threads"] | {"source": str(ROOT / context["threads"]["source"]), "fusion": "learned"}
    return ContextConfig(
        threads=ThreadsTask.model_validate(task),
        embedder=str(ROOT / context["embedder"]),
        test_share=context["test_share"],
        seed=written["seed"],
    )


def recalls(config: ContextConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Build, and return the recall of every leg and of both fusions, and the measures of the learned one."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = build_record_files(config, Path(folder))
        rankings = read_rankings(Path(folder) / RANKINGS, "threads", "test")
    names = [leg for leg in LEGS if leg in config.tasks["threads"].fused_legs]
    found = [measure(name, rankings) for name in (*names, "fused", "learned")]
    return found, metrics["tasks"]["threads"]["learned_fusion"]


if __name__ == "__main__":
    main()
