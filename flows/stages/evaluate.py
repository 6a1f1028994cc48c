"""The stage `evaluate`, which answers the held-out records and scores the answers.

The base model and the model after each phase answer the records. Thread records are scored by directionality
and compared with four baselines without a model, table records by denotation accuracy, and document records
by exact match and F1. Each score has a 95 % interval. `metrics.json` depends only on the artifacts that the
stage reads, so it contains no times.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.children.run_child import run_child
from flows.configuration.evaluated_systems import (
    ADAPTER_FILES,
    VARIANTS,
    adapter_folders,
    baselines,
    is_own,
    named_adapter,
)
from flows.configuration.gates import BASE, BOTH_PHASES, FIRST_PHASE
from flows.configuration.prompts import prompt_settings, prompt_spec
from flows.configuration.schema import Mode, PipelineConfig
from flows.engine.code_files import stage_sources
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import ADAPTER, Stage, StageContext, Upstream
from flows.stages import build_context, convert_model
from flows.stages.answer_cache import AnswerCache
from jora_core.base.errors import InputError
from jora_core.base.record_columns import (
    CHANNEL_RECORD_COLUMNS,
    RECORD_COLUMNS,
    answer_schema,
    arrow_schema,
    is_channel,
)
from jora_core.specs.answers import PredictSpec
from jora_core.specs.common import ComputeSettings, values_of
from retrieval.build.record_files import read_links, read_rankings, read_records, read_rows
from retrieval.evaluation.drawn_records import draw_counts, draw_records
from retrieval.evaluation.measures.choice_likelihoods import with_normalised_choices
from retrieval.evaluation.threads.annotation_files import ANNOTATED, write_links
from retrieval.prompts.context_variants import with_context
from retrieval.settings.legs import CHOOSING_RANKINGS, choosing_ranking
from retrieval.settings.task_registry import TASKS, scoring_modules
from retrieval.tasks.answers import (
    Answers,
    RecordValues,
    comparisons,
    predicted_links,
    score_answers,
    values_of_records,
)

NAME = "evaluate"
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
RECORD_VALUES = "record_values.parquet"
LINKS = "links.parquet"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """The evaluation of one task: how its records are answered, and the largest number of records."""

    task: str
    mode: Mode
    max_records: int | None


@dataclass(frozen=True)
class _Scored:
    """Held-out records of a task with all answers, and unseen training records with those of one system."""

    records: Sequence[Row]
    rows: Sequence[Row]
    unseen: Sequence[Row]
    unseen_rows: Sequence[Row]


def evaluated_parts(config: PipelineConfig) -> list[Part]:
    """Return the tasks of which records are answered, in the order of the scores."""
    wanted = config.evaluate
    chosen, written = [], []
    for name in config.context.tasks:
        most = wanted.most_records(name)
        if most == 0:
            continue
        if TASKS[name].facts.answers == "choice":
            chosen.append(Part(name, wanted.mode, most))
        else:
            written.append(Part(name, "generate", most))
    # The report shows the systems in the order of the scores, so tasks with baselines come first.
    return [*chosen, *written]


def own_systems(context: StageContext) -> dict[str, Path | None]:
    """Return the models of the run by name, with their adapter folders; the base model has None."""
    phases = [context.upstream[phase.stage] for phase in context.config.phases]
    return {BASE: None, **dict(zip((FIRST_PHASE, BOTH_PHASES), phases, strict=False))}


def systems_of(context: StageContext) -> dict[str, Path | None]:
    """Return the evaluated models by name, with their adapter folders: those of the run, then others."""
    config = context.config
    own = {name: folder for name, folder in own_systems(context).items() if config.evaluate.scores(name)}
    return {**own, **_adapters(config)}


def _adapters(config: PipelineConfig) -> dict[str, Path]:
    if all(map(is_own, config.evaluate.systems)):
        return {}
    return adapter_folders(config.evaluate.systems, open_store(config).root)


def _trained(context: StageContext) -> tuple[str, Path | None]:
    """Return the name and the adapter of the most trained model of the run."""
    return list(own_systems(context).items())[-1]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"path"}),
        "mesh": config.mesh.model_dump(mode="json"),
        "prompt": prompt_settings(config),
        # Without folders, which are inputs.
        "evaluate": config.evaluate.model_dump(mode="json", exclude={"systems"})
        | {"systems": [name if is_own(name) else named_adapter(name)[0] for name in config.evaluate.systems]},
    }


def _inputs(config: PipelineConfig) -> dict[str, Path]:
    return {
        f"systems/{name}/{file}": folder / file
        for name, folder in _adapters(config).items()
        for file in ADAPTER_FILES
    }


def _run(context: StageContext) -> dict[str, Any]:
    parts = evaluated_parts(context.config)
    if not parts:
        raise InputError(
            "evaluate: nothing to score; give evaluate.max_records or evaluate.tables_max_records"
        )
    records = read_records(context.upstream[build_context.NAME] / build_context.RECORDS, split="test")
    scores: dict[str, Any] = {"systems": {}, "drawn": {}, "comparisons": {}}
    answered: list[dict[str, Any]] = []
    values: dict[str, RecordValues] = {}
    # Times and memory of the child processes, for the manifest. They are not among the scores, so that
    # `metrics.json` has the same bytes at every run.
    results: dict[str, Any] = {}
    for part in parts:
        held_out = [row for row in records if row["task"] == part.task]
        chosen = draw_records(held_out, part.max_records, context.config.seed)
        # An empty table of scores would look like a finished evaluation.
        if not chosen:
            raise InputError(
                f"evaluate: {part.task} has no held-out records; raise context.test_share, or give "
                f"context.{part.task}.test_source where the task has one"
                + (", or lower context.threads.block" if part.task == "threads" else "")
            )
        # Before the answers, which take long: it may find nothing.
        unseen = _unseen_records(context, part)
        rows, results[part.task] = _predict(context, part, chosen, systems_of(context))
        for variant in filter(context.config.evaluate.scores, VARIANTS):
            changed = [with_context(row, variant, context.config.seed) for row in chosen]
            unchanged = changed.count(None)
            if unchanged:
                scores.setdefault("unchanged_prompts", {}).setdefault(part.task, {})[variant] = unchanged
            given = [new or row for new, row in zip(changed, chosen, strict=True)]
            more, results[f"{part.task}, {variant}"] = _predict(
                context, part, given, {variant: _trained(context)[1]}
            )
            rows = [*rows, *more]
        rows = with_normalised_choices(rows, chosen)
        answered += [{"task": part.task, **row} for row in rows]
        scores["drawn"][part.task] = draw_counts(held_out, chosen)
        unseen_rows: list[dict[str, Any]] = []
        if unseen:
            trained = dict([_trained(context)])
            unseen_rows, results[f"{part.task}, unseen"] = _predict(context, part, unseen, trained)
        answers = _answers(context, part, _Scored(chosen, rows, unseen, unseen_rows))
        _merge(scores, score_answers(part.task, answers))
        values[part.task] = values_of_records(part.task, answers)
        scores["comparisons"][part.task] = comparisons(values[part.task], answers)
        links = predicted_links(part.task, answers)
        if links is not None:
            write_links(context.output_dir / LINKS, {ANNOTATED: links.gold, **links.systems})
    _write_values(context.output_dir / RECORD_VALUES, values)
    _write_predictions(context.output_dir / PREDICTIONS, answered)
    # `allow_nan=False`: NaN is no JSON, and a browser or another language could not read the file.
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    (context.output_dir / METRICS).write_text(f"{text}\n", encoding="utf-8")
    peaks = [result["peak_memory_bytes"] for result in results.values() if "peak_memory_bytes" in result]
    return {"predict": results, **({"peak_memory_bytes": max(peaks)} if peaks else {})}


def _unseen_records(context: StageContext, part: Part) -> list[Row]:
    """Return training records that no phase has trained on, as many as `evaluate.combine_records` says.

    They are those whose prompts are as of held-out records. Where a right post was put into a prompt that the
    retriever had left it out of, the fusion looks surer than it is, and would weigh too little.

    Raises:
        InputError: all training records are of contexts that were trained on.
    """
    config = context.config
    most = config.evaluate.combine_records
    if part.task != "threads" or not most:
        return []
    phases = [phase for phase in config.phases if part.task in phase.tasks]
    built = context.upstream[build_context.NAME]
    # Not the whole rows: those of all training comments, with their candidates, would take much memory.
    rankings = {
        row["id"]: row
        for row in read_rows(built / build_context.RANKINGS, ["id"], optional=CHOOSING_RANKINGS)
    }
    rows = [
        # They are answered as held-out records are.
        row | {"split": "test"}
        for row in read_records(built / build_context.RECORDS, part.task, "train")
        if all(phase.validates(row["context_id"], config.training_seed) for phase in phases)
    ]
    if not rows:
        raise InputError(
            "evaluate.combine_records: no training thread is kept for validation; raise the phases' "
            "validation_share"
        )
    natural = [row for row in rows if _as_held_out(config, row, rankings[row["id"]])]
    if not natural:
        raise InputError(
            "evaluate.combine_records: the retriever finds the right post of no training comment that is "
            "kept; raise context.threads.n_contexts or the phases' validation_share"
        )
    return draw_records(natural, most, config.seed)


def _as_held_out(config: PipelineConfig, record: Row, ranking: Row) -> bool:
    """Return whether a training record's prompt has the posts that it would have if it were held out."""
    threads = config.context.threads
    assert threads is not None
    if threads.contexts == "window":
        return True
    best = ranking[choosing_ranking([name for name, ids in ranking.items() if ids])]
    return set(record["context_ids"]) <= set(best[: threads.n_contexts])


def _predict(
    context: StageContext, part: Part, chosen: Sequence[Row], systems: Mapping[str, Path | None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answer the chosen records with systems; return the rows of answers and the metrics.

    Answers that an earlier evaluation computed from the same records, model and adapter are read from the
    cache. A child process computes the others.
    """
    import pyarrow.parquet as pq

    folder = context.work_dir / part.task
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "records.parquet"
    write_drawn(chosen, records)
    model = convert_model.base_folder(context.config, context.upstream[convert_model.NAME])
    spec = PredictSpec(
        **question_settings(context.config, part, model, records),
        systems=dict(systems),
        output_dir=folder,
        compilation_cache_dir=context.cache_dir / "jax",
    )
    cache = AnswerCache(
        context.cache_dir / "answers", str(context.manifests[convert_model.NAME]["key"]), spec, chosen
    )
    known = {} if context.fresh else cache.read()
    missing = {name: adapter for name, adapter in spec.systems.items() if name not in known}
    result: dict[str, Any] = {"records": len(chosen)}
    if missing:
        result = run_child("predict", spec.model_copy(update={"systems": missing}), folder)
        computed = pq.read_table(folder / PREDICTIONS).to_pylist()
        for name in missing:
            known[name] = [row for row in computed if row["system"] == name]
            cache.write(name, known[name])
    # The scores show the systems in this order, whichever were computed.
    rows = [row for name in spec.systems for row in known[name]]
    cached = [name for name in spec.systems if name not in missing]
    return rows, {**result, "systems": list(spec.systems), "cached_systems": cached}


def write_drawn(records: Sequence[Row], path: Path) -> None:
    """Write drawn records to a file of their own, so that a child process does not draw them again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    channel = CHANNEL_RECORD_COLUMNS if any(map(is_channel, records)) else {}
    schema = arrow_schema(RECORD_COLUMNS | channel)
    pq.write_table(pa.Table.from_pylist(list(records), schema=schema), path)


def question_settings(config: PipelineConfig, part: Part, model: Path, records: Path) -> dict[str, Any]:
    """Return the fields of a spec that decide the prompts of a task's drawn records.

    Args:
        config: configuration of the pipeline.
        part: the task.
        model: folder of the base model.
        records: file of the drawn records.
    """
    return {
        "model": model,
        "records": records,
        "task": part.task,
        "split": "test",
        "max_records": None,
        "prompt": prompt_spec(config),
        "max_seq_len": config.evaluate.max_seq_len,
        "tokens_per_batch": config.evaluate.tokens_per_batch,
        "mode": part.mode,
        "sharing": config.evaluate.sharing,
        "max_new_tokens": config.evaluate.max_new_tokens,
        "mesh": config.mesh,
        **values_of(ComputeSettings, config.model),
    }


def _answers(context: StageContext, part: Part, scored: _Scored) -> Answers:
    built = context.upstream[build_context.NAME]
    return Answers(
        records=scored.records,
        rows=scored.rows,
        unseen_records=scored.unseen,
        unseen_rows=scored.unseen_rows,
        # A function, because only tasks with baselines read the rankings.
        # Read once, for the scores and for the values of single records.
        rankings=functools.cache(lambda: read_rankings(built / build_context.RANKINGS, part.task, "test")),
        links=functools.cache(lambda: read_links(built / build_context.LINKS, part.task, "test")),
        mode=part.mode,
        seed=context.config.seed,
        resamples=context.config.evaluate.bootstrap_samples,
        baselines=list(filter(context.config.evaluate.scores, baselines())),
    )


def _merge(scores: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the scores of one task to the scores of all tasks, system by system."""
    for name, metrics in part.pop("systems").items():
        # Metrics of different tasks have different names, so nothing is overwritten.
        scores["systems"].setdefault(name, {}).update(metrics)
    if "left_out" in part:
        scores.setdefault("left_out", {}).update(part.pop("left_out"))
    scores.update(part)


def _write_predictions(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A choice has no text and a written answer no log-probability; the file has all columns for both.
    schema = answer_schema("task").append(pa.field("normalised_choice", pa.string()))
    kept = [{name: row.get(name) for name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(kept, schema=schema), path)


def _write_values(path: Path, values: Mapping[str, RecordValues]) -> None:
    """Write one row for each record, system and measure, by which evaluations are compared."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.string()) for name in ("task", "id", "context_id", "system", "measure")]
        + [("value", pa.float64())]
    )
    tables = [
        pa.table(
            [
                [task] * len(found.ids),
                list(found.ids),
                list(found.contexts),
                [system] * len(found.ids),
                [measure] * len(found.ids),
                column,
            ],
            schema=schema,
        )
        for task, found in values.items()
        for system, measures in found.systems.items()
        for measure, column in measures.items()
    ]
    pq.write_table(pa.concat_tables(tables), path)


def _upstream(config: PipelineConfig) -> tuple[Upstream, ...]:
    # Only the held-out records of the tasks that are scored.
    tasks = tuple(part.task for part in evaluated_parts(config))
    # And the training records to weigh the model on.
    unseen = (
        build_context.part_names(["threads"], "train", "records", "rankings")
        if config.evaluate.combine_records
        else ()
    )
    return (
        Upstream(
            build_context.NAME,
            (*build_context.part_names(tasks, "test", "records", "rankings", "links"), *unseen),
            parts=tasks,
        ),
        convert_model.upstream(config),
        *(Upstream(phase.stage, (ADAPTER,)) for phase in config.phases),
    )


EVALUATE = Stage(
    name=NAME,
    description="Score the existing adapters on the held-out records.",
    version=1,
    settings=_settings,
    inputs=_inputs,
    upstream=_upstream,
    sources=lambda: stage_sources(
        __file__,
        "jora_core.commands.predict",
        "retrieval.build.record_files",
        # These modules are found by name in a registry, so the scanner of imports cannot reach them.
        *scoring_modules(),
    ),
    run=_run,
)
