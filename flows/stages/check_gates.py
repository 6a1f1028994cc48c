"""The stage `check-gates`, which compares the evaluation with the gates of the configuration.

It writes its verdicts to `gates.json` and does not fail if a gate is not met. The stage `export` reads them,
and then exports nothing. So the verdicts are an artifact that the report can show. A comparison with another
system is paired: the difference of the two on each record, with an interval that resamples contexts. No
correction is made for the number of gates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.configuration.gates import BOTH_PHASES, FIRST_PHASE, PREVIOUS, GateConfig
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.code_files import stage_sources
from flows.engine.errors import GateFailed
from flows.engine.run_records import read_records
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import Stage, StageContext, Upstream
from jora_core.base.errors import InputError
from retrieval.evaluation.drawn_records import few_contexts

NAME = "check-gates"
VERDICTS = "gates.json"
# By name, because an import would make the code for scoring answers a part of the export's key.
EVALUATE, EXPORT = "evaluate", "export"
RECORD_VALUES, METRICS = "record_values.parquet", "metrics.json"
_RELATIONS = {"better": "better than", "worse": "worse than", "not separable": "not separable from"}


@dataclass(frozen=True)
class _Values:
    """One system's values of a measure: record id to value, and record id to context."""

    by_id: dict[str, float]
    contexts: dict[str, str]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "gates": [gate.model_dump(mode="json") for gate in config.gates],
        "bootstrap_samples": config.evaluate.bootstrap_samples,
    }


def _run(context: StageContext) -> dict[str, Any]:
    config = context.config
    own = context.upstream[EVALUATE]
    # As `evaluate.systems_of` names them.
    last = BOTH_PHASES if len(config.phases) > 1 else FIRST_PHASE
    store = open_store(config)
    earlier = _previous(store, config, str(context.manifests[EVALUATE]["key"]))
    if earlier is not None and any(gate.rival == PREVIOUS for gate in config.gates):
        # The verdict can be proved only as long as this evaluation is there.
        context.note_read(EVALUATE, earlier)
    verdicts = [_verdict(config, gate, gate.system or last, own, (store, earlier)) for gate in config.gates]
    found = {"verdicts": verdicts, "passed": all(verdict["passed"] for verdict in verdicts)}
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (context.output_dir / VERDICTS).write_text(f"{text}\n", encoding="utf-8")
    return {"passed": found["passed"], "gates": len(verdicts)}


def _previous(store: Store, config: PipelineConfig, own_key: str) -> str | None:
    """Return the key of the evaluation behind the project's newest earlier export; None if none is left."""
    for record in read_records(store):
        key = record.keys.get(EVALUATE)
        # A run of the export alone names no evaluation, and a run whose gates failed has no export.
        exported = record.finished(EXPORT)
        if record.project != config.project or not exported or key in (None, own_key):
            continue
        store.fetch(EVALUATE, key)
        if store.check(EVALUATE, key).whole and (store.path(EVALUATE, key) / RECORD_VALUES).is_file():
            return key
    return None


def _verdict(
    config: PipelineConfig, gate: GateConfig, system: str, own: Path, history: tuple[Store, str | None]
) -> dict[str, Any]:
    """Judge one gate.

    Args:
        config: configuration of the pipeline.
        gate: the gate.
        system: name of the judged system.
        own: folder of the evaluation.
        history: the store, and the key of the evaluation before; None if there is none.

    Returns:
        The gate's `metric` and `system`, `passed`, and one line `text`; for a comparison also `rival`,
        `difference`, `p`, `low`, `high`, `records` and `contexts`.
    """
    if gate.rival is None:
        return _bounded(gate, system, own)
    values = _read(own, gate.metric, system)
    value = sum(values.by_id.values()) / len(values.by_id)
    base: dict[str, Any] = {"metric": gate.metric, "system": system, "value": round(value, 6)}
    said = f"{gate.metric} of {system} is {value:.3f}"
    rival = str(gate.rival)
    store, earlier = history
    if rival == PREVIOUS and earlier is None:
        return base | {
            "passed": True,
            "rival": PREVIOUS,
            "text": f"{said}; no earlier exported run to compare",
        }
    folder = store.path(EVALUATE, earlier) if rival == PREVIOUS and earlier else own
    other = _read(folder, gate.metric, system if rival == PREVIOUS else rival)
    name = f"the run before ({EVALUATE} {earlier[:12]})" if rival == PREVIOUS and earlier else rival
    shared = [record for record in values.by_id if record in other.by_id]
    if not shared:
        # Not "passed": nobody can say that it is not worse.
        text = f"{said}; {name} answered none of the same records, so they cannot be compared"
        return base | {"passed": False, "rival": rival, "text": text}
    found = _difference(config, gate, shared, values, other)
    low, high = found["low"], found["high"]
    relation = found["verdict"]
    # The verdict decides, not the interval alone: a few contexts that differ alike have a narrow interval,
    # and the line must not say "not separable" of a gate that stops.
    lost = relation == "worse" and high < -gate.margin
    passed = relation == "better" if gate.better_than is not None else not lost
    text = f"{said}, {_RELATIONS[relation]} {name}: difference {found['value']:+.3f} "
    text += "" if low is None else f"[{low:+.3f}, {high:+.3f}] "
    text += f"on {len(shared)} records in {found['contexts']} contexts"
    if warning := few_contexts(found["contexts"]):
        text += f" ({warning})"
    if gate.margin and gate.not_worse_than is not None:
        text += f", {gate.margin:g} allowed"
    return base | {
        "passed": passed,
        "rival": rival,
        "difference": found["value"],
        "p": found["p"],
        "low": low,
        "high": high,
        "records": len(shared),
        "contexts": found["contexts"],
        "text": text,
    }


def _bounded(gate: GateConfig, system: str, own: Path) -> dict[str, Any]:
    """Judge a gate with `at_least` or `at_most`."""
    value = _value(own, gate.metric, system)
    base: dict[str, Any] = {"metric": gate.metric, "system": system}
    if value is None:
        # Not "passed": nobody has seen that the bound holds.
        text = f"{gate.metric} of {system} has no value, because nothing was counted"
        return base | {"value": None, "passed": False, "text": text}
    if gate.at_least is not None:
        passed, bound, words = value >= gate.at_least, gate.at_least, ("at least", "below")
    else:
        bound = float(gate.at_most or 0.0)
        passed, words = value <= bound, ("at most", "above")
    text = f"{gate.metric} of {system} is {value:.3f}, {words[not passed]} {bound:g}"
    return base | {"value": round(value, 6), "passed": passed, "text": text}


def _value(folder: Path, metric: str, system: str) -> float | None:
    """Return a system's value of a measure: the mean over its records, or what was counted over all of them.

    Raises:
        InputError: the evaluation does not have it. The message names what it has.
    """
    rows = _rows(folder, metric)
    mine = [row["value"] for row in rows if row["system"] == system]
    if mine:
        return sum(mine) / len(mine)
    measure = metric.partition(".")[2]
    pooled = _pooled(folder)
    if measure in pooled.get(system, {}):
        return pooled[system][measure]
    having = sorted({row["system"] for row in rows} | {name for name in pooled if measure in pooled[name]})
    if having:
        raise InputError(f"gates: no system {system} has {metric}; expected one of {', '.join(having)}")
    raise InputError(
        f"gates: the evaluation has no {metric}, because no record has what it counts; {system} has "
        f"{', '.join(pooled.get(system, {})) or 'no measure'}"
    )


def _pooled(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return the values that an evaluation counted over all records, by system and measure.

    Measures of different tasks have different names. Those of written answers that stand beside choices begin
    with `generated.`.
    """
    path = folder / METRICS
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, dict[str, float | None]] = {}
    for prefix, section in (
        ("", scores),
        ("", scores.get("links", {})),
        ("generated.", scores.get("generated", {})),
    ):
        for system, measures in section.get("systems", {}).items():
            for measure, score in measures.items():
                if isinstance(score, dict) and "value" in score:
                    found.setdefault(system, {})[f"{prefix}{measure}"] = score["value"]
    for system, each in scores.get("calibration", {}).items():
        found.setdefault(system, {})["expected_calibration_error"] = each["expected_calibration_error"]
    return found


def _difference(
    config: PipelineConfig, gate: GateConfig, shared: list[str], own: _Values, other: _Values
) -> dict[str, Any]:
    """Return the mean difference on the shared records, with its interval and its `verdict`."""
    import numpy as np

    from retrieval.evaluation.comparisons import verdict
    from retrieval.evaluation.context_bootstrap import ContextBootstrap

    contexts = [own.contexts[record] for record in shared]
    resampled = ContextBootstrap.over(contexts, config.seed, config.evaluate.bootstrap_samples)
    one, two = (np.array([values.by_id[record] for record in shared]) for values in (own, other))
    found = resampled.difference(one, two, gate.confidence)
    return found | {"verdict": verdict(found["value"], found["p"], gate.confidence)}


def _read(folder: Path, metric: str, system: str) -> _Values:
    found = _rows(folder, metric)
    rows = [row for row in found if row["system"] == system]
    if not rows:
        known = ", ".join(sorted({row["system"] for row in found}))
        raise InputError(
            f"gates: no system {system} has values of {metric} for each record; expected one of {known}"
            if known
            else f"gates: the evaluation has no values of {metric} for each record; give at_least or at_most"
        )
    return _Values({row["id"]: row["value"] for row in rows}, {row["id"]: row["context_id"] for row in rows})


def _rows(folder: Path, metric: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    task, _, measure = metric.partition(".")
    filters = [("task", "=", task), ("measure", "=", measure)]
    return pq.read_table(folder / RECORD_VALUES, filters=filters).to_pylist()


def failed_gates(folder: Path) -> list[str]:
    """Return one line for each gate of an artifact of this stage that is not met."""
    verdicts = json.loads((folder / VERDICTS).read_text(encoding="utf-8"))["verdicts"]
    return [verdict["text"] for verdict in verdicts if not verdict["passed"]]


def require_passed(folder: Path, config: PipelineConfig) -> None:
    """Refuse the export of a model whose evaluation does not meet the gates.

    Raises:
        GateFailed: a gate is not met and `ignore_gates` is not set.
    """
    failed = failed_gates(folder)
    if failed and not config.ignore_gates:
        raise GateFailed(
            f"gate not met, nothing is exported: {'; '.join(failed)}. To export all the same: "
            f"`{config.command('run', '--ignore-gates')}`"
        )


CHECK_GATES = Stage(
    name=NAME,
    description="Compare the evaluation with the gates of the configuration.",
    version=1,
    settings=_settings,
    inputs=lambda config: {},
    upstream=lambda config: (Upstream(EVALUATE, (RECORD_VALUES, METRICS)),),
    sources=lambda: stage_sources(__file__, "retrieval.evaluation.comparisons"),
    run=_run,
    applies=lambda config: bool(config.gates),
)
