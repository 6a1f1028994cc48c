"""`evaluate`: answer the held-out records with the base model and after each phase, and score the answers.

Threads give directionality beside four baselines without a model, tables denotation accuracy, documents
exact match and F1, each with a 95 % interval. `metrics.json` is a function of the artifacts that it reads:
no times in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.configuration.schema import Mode, PipelineConfig, Task
from flows.engine.code_files import stage_sources
from flows.engine.stage import BASE, BOTH_PHASES, FIRST_PHASE, Stage, StageContext, Upstream
from flows.stages import build_context, convert_model
from flows.stages.finetune import ADAPTER
from jora_core.base.errors import InputError
from jora_core.specs.answers import PredictSpec
from jora_core.specs.common import ALPACA_SHORT

NAME = "evaluate"
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"

Row = Mapping[str, Any]
Answers = Mapping[str, Mapping[str, str]]  # system → record id → answer


@dataclass(frozen=True)
class _Part:
    """One task's share of the evaluation: how its records are answered, and how many at most."""

    task: Task
    mode: Mode
    max_records: int | None


def _parts(config: PipelineConfig) -> list[_Part]:
    wanted = config.evaluate
    parts = (
        _Part("threads", wanted.mode, wanted.max_records),
        _Part("tables", "generate", wanted.tables_max_records),
        _Part("qa", "generate", wanted.qa_max_records),
    )
    return [
        part for part in parts if getattr(config.context, part.task) is not None and part.max_records != 0
    ]


def systems_of(context: StageContext) -> dict[str, Path | None]:
    """The evaluated systems by name, with the adapter's folder of each; the base model has none."""
    phases = [context.upstream[phase.stage] for phase in context.config.phases]
    return {BASE: None, **dict(zip((FIRST_PHASE, BOTH_PHASES), phases, strict=False))}


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"path"}),
        "mesh": config.mesh.model_dump(mode="json"),
        "evaluate": config.evaluate.model_dump(mode="json"),
    }


def _run(context: StageContext) -> dict[str, Any]:
    parts = _parts(context.config)
    if not parts:
        raise InputError(
            "evaluate: nothing to score; give evaluate.max_records or evaluate.tables_max_records"
        )
    from retrieval.build.record_files import read_records

    records = read_records(context.upstream[build_context.NAME] / build_context.RECORDS, split="test")
    scores: dict[str, Any] = {"systems": {}}
    answered: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for part in parts:
        chosen = _choose(
            [row for row in records if row["task"] == part.task], part.max_records, context.config.seed
        )
        if not chosen:
            raise InputError(
                f"evaluate: {part.task} has no held-out records; raise context.test_share, or give "
                f"context.{part.task}.test_source where the task has one"
            )
        rows, results[part.task] = _predict(context, part, chosen)
        answered += [{"task": part.task, **row} for row in rows]
        _merge(scores, _score(context, part, chosen, rows))
    _write_predictions(context.output_dir / PREDICTIONS, answered)
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    (context.output_dir / METRICS).write_text(f"{text}\n", encoding="utf-8")
    peaks = [result["peak_memory_bytes"] for result in results.values() if "peak_memory_bytes" in result]
    return {"predict": results, **({"peak_memory_bytes": max(peaks)} if peaks else {})}


def _choose(rows: Sequence[dict[str, Any]], most: int | None, seed: int) -> list[dict[str, Any]]:
    """At most `most` rows, drawn by seed so that they spread over all contexts; in the order of the file."""
    if most is None or len(rows) <= most:
        return list(rows)
    from retrieval.text.normalize import seeded_hash

    drawn = sorted(rows, key=lambda row: (seeded_hash(seed, "evaluated", row["id"]), row["id"]))[:most]
    kept = {row["id"] for row in drawn}
    return [row for row in rows if row["id"] in kept]


def _predict(
    context: StageContext, part: _Part, chosen: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Let all systems answer the chosen records in a child process; return its rows and its result."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from retrieval.build.record_files import RECORD_COLUMNS, schema

    config = context.config
    folder = context.work_dir / part.task
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "records.parquet"
    pq.write_table(pa.Table.from_pylist(list(chosen), schema=schema(RECORD_COLUMNS)), records)
    spec = PredictSpec(
        model=Path(config.model.path),
        systems=systems_of(context),
        records=records,
        task=part.task,
        split="test",
        max_records=None,
        prompt_template=ALPACA_SHORT,
        max_seq_len=config.evaluate.max_seq_len,
        tokens_per_batch=config.evaluate.tokens_per_batch,
        mode=part.mode,
        sharing=config.evaluate.sharing,
        max_new_tokens=config.evaluate.max_new_tokens,
        mesh=config.mesh,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        attention=config.model.attention,
        output_dir=folder,
        compilation_cache_dir=context.cache_dir / "jax",
    )
    result = run_child("predict", spec, folder)
    return pq.read_table(folder / PREDICTIONS).to_pylist(), result


def _score(context: StageContext, part: _Part, chosen: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    from retrieval.build.record_files import read_rankings
    from retrieval.evaluation.answer_scores import qa_scores, tables_scores

    options: dict[str, Any] = {
        "seed": context.config.seed,
        "resamples": context.config.evaluate.bootstrap_samples,
    }
    if part.task == "threads":
        path = context.upstream[build_context.NAME] / build_context.RANKINGS
        ids = {row["id"] for row in chosen}
        rankings = [row for row in read_rankings(path, "threads", "test") if row["id"] in ids]
        return _thread_scores(part.mode, chosen, rows, rankings, options)
    judge = tables_scores if part.task == "tables" else qa_scores
    said = _answers(rows, "text")
    return {"systems": {name: judge(by_id, chosen, **options) for name, by_id in said.items()}}


def _thread_scores(
    mode: Mode,
    chosen: Sequence[Row],
    rows: Sequence[Row],
    rankings: Sequence[Row],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Directionality of all systems; where both were asked for, of the written answers too, under
    `generated`.
    """
    from retrieval.evaluation.answer_scores import directionality, prediction_from_answer

    by_id = {row["id"]: row for row in chosen}

    def score(column: str) -> dict[str, Any]:
        predictions = {
            system: {record: prediction_from_answer(answer, by_id[record]) for record, answer in said.items()}
            for system, said in _answers(rows, column).items()
        }
        return directionality(predictions, rankings, **options)

    scores = score("text" if mode == "generate" else "choice")
    scores["answers"] = "generated" if mode == "generate" else "choice"
    if mode == "both":
        models = _answers(rows, "text")
        written = score("text")["systems"]
        scores["generated"] = {"systems": {name: written[name] for name in models}}
    return scores


def _answers(rows: Sequence[Row], column: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["system"], {})[row["id"]] = row[column]
    return found


def _merge(scores: dict[str, Any], part: dict[str, Any]) -> None:
    """Add one task's scores; each system has the metrics of all tasks that it answered."""
    for name, metrics in part.pop("systems").items():
        scores["systems"].setdefault(name, {}).update(metrics)
    scores.update(part)


def _write_predictions(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("task", pa.string()),
            ("system", pa.string()),
            ("choice", pa.string()),
            ("choice_logprob", pa.float64()),
            ("text", pa.string()),
        ]
    )
    kept = [{name: row.get(name) for name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(kept, schema=schema), path)


EVALUATE = Stage(
    name=NAME,
    description="Score the existing adapters on the held-out records.",
    version=1,
    settings=_settings,
    inputs=lambda config: {},
    upstream=lambda config: (
        Upstream(build_context.NAME, (build_context.RECORDS, build_context.RANKINGS)),
        Upstream(convert_model.NAME, (convert_model.MODEL_CARD,)),
        *(Upstream(phase.stage, (ADAPTER,)) for phase in config.phases),
    ),
    sources=lambda: stage_sources(
        __file__,
        "jora_core.commands.predict",
        "retrieval.build.record_files",
        "retrieval.evaluation.answer_scores",
    ),
    run=_run,
)
