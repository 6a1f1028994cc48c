"""The stage `compare-seeds`, which trains and evaluates again with the other training seeds.

Only the training differs between the seeds: the records, their split and the scored records follow `seed`.
Each training and each evaluation is an artifact of its own, under the key that the configuration with this
seed alone would give it. So a seed that was trained before is not trained again, and a killed one goes on.
The stage itself writes `seeds.json`: means over the seeds, their spread, and intervals over both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.configuration.gates import BOTH_PHASES, FIRST_PHASE
from flows.configuration.schema import PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import Stage, StageContext, Upstream
from flows.stages import evaluate

NAME = "compare-seeds"
SUMMARY = "seeds.json"

logger = logging.getLogger("jora.compare_seeds")


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "seeds": list(config.seeds),
        "evaluate": {"bootstrap_samples": config.evaluate.bootstrap_samples},
    }


def _run(context: StageContext) -> dict[str, Any]:
    config = context.config
    folders = {config.training_seed: context.upstream[evaluate.NAME]}
    keys = {config.training_seed: str(context.manifests[evaluate.NAME]["key"])}
    for seed in config.seeds[1:]:
        folders[seed], keys[seed] = _evaluated(context, seed)
    found = {
        "seeds": list(config.seeds),
        "evaluations": {str(seed): key for seed, key in keys.items()},
        "tasks": _summary(config, [folders[seed] for seed in config.seeds]),
    }
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (context.output_dir / SUMMARY).write_text(f"{text}\n", encoding="utf-8")
    return {"seeds": len(config.seeds)}


def _evaluated(context: StageContext, seed: int) -> tuple[Path, str]:
    """Train all phases with another seed and evaluate them; return the folder and key of the evaluation."""
    config = context.config.model_copy(update={"seeds": [seed]})
    store = open_store(config)
    reference = None
    for name in (*(phase.stage for phase in config.phases), evaluate.NAME):
        logger.info("seed %s: %s", seed, name)
        assert context.execute is not None
        reference = context.execute(name, config, store)
    assert reference is not None
    return Path(reference.path), reference.key


def _summary(config: PipelineConfig, folders: list[Path]) -> dict[str, Any]:
    """Summarise the values of single records of each seed's evaluation, by task and measure."""
    import numpy as np
    import pyarrow.parquet as pq

    from retrieval.evaluation.comparisons import compare_seeds

    seeds = [pq.read_table(folder / evaluate.RECORD_VALUES).to_pylist() for folder in folders]
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(row["task"] for row in seeds[0]):
        mine = [[row for row in rows if row["task"] == task] for rows in seeds]
        contexts = {row["id"]: row["context_id"] for row in mine[0]}
        by_seed = [_columns(rows, list(contexts)) for rows in mine]
        systems: dict[str, dict[str, Any]] = {}
        for system, measure in by_seed[0]:
            stacked = np.array([values[system, measure] for values in by_seed])
            systems.setdefault(system, {})[measure] = stacked
        tasks[task] = compare_seeds(
            list(contexts.values()),
            systems,
            # `evaluate.systems` may leave out the most trained one.
            next((name for name in (BOTH_PHASES, FIRST_PHASE) if name in systems), None),
            seed=config.seed,
            resamples=config.evaluate.bootstrap_samples,
        )
    return tasks


def _columns(rows: list[Mapping[str, Any]], ids: list[str]) -> dict[tuple[str, str], list[float]]:
    """Return the values by system and measure, in the order of the records' ids."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        values.setdefault((row["system"], row["measure"]), {})[row["id"]] = row["value"]
    return {name: [by_id[record] for record in ids] for name, by_id in values.items()}


COMPARE_SEEDS = Stage(
    name=NAME,
    description="Train and evaluate with the other training seeds, and compare them.",
    # 2: the manifest names the artifacts of the other seeds, so a clean-up keeps them.
    version=2,
    settings=_settings,
    inputs=lambda config: {},
    upstream=lambda config: (Upstream(evaluate.NAME, (evaluate.RECORD_VALUES,)),),
    sources=lambda: stage_sources(__file__, "retrieval.evaluation.comparisons"),
    run=_run,
    applies=lambda config: len(config.seeds) > 1,
)
