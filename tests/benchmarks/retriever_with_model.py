"""Retriever and tuned model as one system: reply@1 of the learned fusion, of the model, and of both together.

    python tests/benchmarks/retriever_with_model.py CONFIG [--set NAME=VALUE] [--fit unseen|others]
        [--records 1000] [--json FILE]

CONFIG has `fusion: learned` and was run (`jora run CONFIG`), so its store has records, trained adapters and
an evaluation in mode `choice` or `both`. The three weights that join the two
(retrieval/evaluation/combined_system.py) are fitted

- `unseen`: on the training contexts that the training kept for its validation loss (`validation_share`). The
  last adapter answers their records now; the learned fusion ranks them by the perceptron that has not seen
  them.
- `others`: for each held-out context, on the other held-out contexts. For a training without
  validation_share.

Scores are of the held-out records. Intervals are 95 % percentile bootstrap over contexts. A difference has
a p-value by randomisation over contexts, and the numbers of records that only one of the two systems gets
right.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness import at_least_one, machine, print_table, write_result

from flows.children.run_child import run_child
from flows.commands.common_options import load
from flows.configuration.prompts import prompt_spec
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES, build_context, evaluate
from flows.stages.converted_model import converted
from jora_core.base.errors import InputError
from jora_core.base.record_columns import RECORD_COLUMNS, arrow_schema
from jora_core.data.examples import is_for_validation
from jora_core.specs.answers import PredictSpec
from retrieval.build.record_files import read_rankings, read_records
from retrieval.evaluation.answer_scores import Prediction, directionality, paired_difference
from retrieval.evaluation.combined_system import (
    RETRIEVER_ALONE,
    ScoredCandidates,
    chosen_posts,
    cross_fitted_weights,
    fit_weights,
    model_alone,
    scored_candidates,
)
from retrieval.text.normalize import seeded_hash

TASK = "threads"
LEARNED, MODEL, TOGETHER = "learned fusion", "model", "together"


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description="Learned fusion and tuned model together")
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", metavar="NAME=VALUE")
    parser.add_argument("--fit", choices=("unseen", "others"), default="unseen")
    parser.add_argument("--records", type=at_least_one, default=1000, help="unseen records to fit on at most")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    config = load(args.config, args.overrides)
    store = open_store(config)
    built = _artifact(config, store, build_context.NAME)
    answers = _of_last_phase(
        pq.read_table(_artifact(config, store, evaluate.NAME) / evaluate.PREDICTIONS).to_pylist()
    )
    records = read_records(built / build_context.RECORDS, TASK)
    rankings = read_rankings(built / build_context.RANKINGS, TASK)
    held_out = scored_candidates(records, rankings, answers)
    if args.fit == "others":
        weights, fitted = cross_fitted_weights(held_out), len(held_out)
    else:
        unseen = unseen_records(config, records, args.records)
        fit_on = scored_candidates(records, rankings, answer(config, store, unseen))
        weights, fitted = fit_weights(fit_on), len(fit_on)
        print(f"weights fitted on {fitted} records of {len(set(fit_on.contexts))} unseen contexts: {weights}")
    results = compare(held_out, rankings, weights)
    print_table([_row(result) for result in results])
    mean = weights.reshape(-1, len(RETRIEVER_ALONE)).mean(axis=0).tolist()
    settings = {"config": args.config.name, "fit": args.fit, "fitted_on": fitted, "weights": mean}
    ratios = {result["system"]: result["value"] for result in results}
    write_result(args.json, about, settings, results, ratios)


def compare(
    held_out: ScoredCandidates, rankings: Sequence[Mapping[str, Any]], weights: Any
) -> list[dict[str, Any]]:
    """The reply@1 of each system, and the differences of both together to each alone."""
    by_id = {row["id"]: row for row in rankings}
    rows = [by_id[name] for name in held_out.ids]
    chosen: dict[str, Mapping[str, Prediction]] = {
        LEARNED: chosen_posts(held_out, RETRIEVER_ALONE),
        MODEL: model_alone(held_out),
        TOGETHER: chosen_posts(held_out, weights),
    }
    found = directionality(chosen, rows)["systems"]
    names = [name for name in found if name not in ("random", "opening_post")]
    out = [{"system": name, **found[name]["reply@1"]} for name in names]
    for other in (LEARNED, MODEL):
        difference = paired_difference(chosen[TOGETHER], chosen[other], rows)
        out.append({"system": f"together minus {other}", **difference})
    return out


def unseen_records(
    config: PipelineConfig, records: Sequence[Mapping[str, Any]], most: int
) -> list[Mapping[str, Any]]:
    """Training records of contexts that no phase was trained on, whole contexts in an order by seed."""
    shares = [phase.validation_share for phase in config.phases if TASK in phase.tasks]
    if not shares or min(shares) == 0:
        raise InputError(
            f"phases.*.validation_share is 0, so the training has seen all {TASK}; set it above 0 and train "
            "again, or fit on the other held-out contexts with --fit others"
        )
    by_context: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["split"] == "train" and is_for_validation(record["context_id"], config.seed, min(shares)):
            by_context.setdefault(record["context_id"], []).append(record)
    out: list[Mapping[str, Any]] = []
    for name in sorted(by_context, key=lambda name: seeded_hash(config.seed, "combined", name)):
        if out and len(out) + len(by_context[name]) > most:
            break
        out += by_context[name]
    return out


def answer(
    config: PipelineConfig, store: Store, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The answers of the last phase's adapter to training records."""
    with tempfile.TemporaryDirectory(prefix="jora-answers-") as name:
        folder = Path(name)
        table = pa.Table.from_pylist(
            [dict(record) for record in records], schema=arrow_schema(RECORD_COLUMNS)
        )
        pq.write_table(table, folder / "records.parquet")
        spec = PredictSpec(
            model=Path(converted(config, store, STAGES).model.path),
            systems={"last phase": _artifact(config, store, config.phases[-1].stage)},
            records=folder / "records.parquet",
            task=TASK,
            split="train",
            prompt=prompt_spec(config),
            max_seq_len=config.evaluate.max_seq_len,
            tokens_per_batch=config.evaluate.tokens_per_batch,
            mode="choice",
            sharing=config.evaluate.sharing,
            max_new_tokens=config.evaluate.max_new_tokens,
            mesh=config.mesh,
            dtype=config.model.dtype,
            quantization=config.model.quantization,
            attention=config.model.attention,
            output_dir=folder / "answers",
            compilation_cache_dir=store.cache_dir / "jax",
        )
        run_child("predict", spec, folder)
        return pq.read_table(folder / "answers" / "predictions.parquet").to_pylist()


def _of_last_phase(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [row for row in rows if row["task"] == TASK]
    return [row for row in rows if row["system"] == rows[-1]["system"]]


def _artifact(config: PipelineConfig, store: Store, stage: str) -> Path:
    key = identify(config, STAGES, until=stage)[stage].key
    store.fetch(stage, key)
    if not store.check(stage, key).whole:
        raise InputError(
            f"{store.root} has no finished {stage} of this configuration; run `{config.command('run')}`"
        )
    return store.path(stage, key)


def _row(result: Mapping[str, Any]) -> dict[str, str]:
    sure = {name: str(result.get(name, "")) for name in ("p", "only_first", "only_second")}
    value = f"{result['value']:.3f} ({result['low']:.3f}–{result['high']:.3f})"
    return {"System": result["system"], "reply@1": value, "n": str(result["n"]), **sure}


if __name__ == "__main__":
    main()
