"""Count the tokens of each phase with shared contexts and without, for `jora plan`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.children.run_child import ChildError, run_child
from flows.configuration.schema import PhaseConfig, PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.plan import PlannedStage
from flows.engine.stage import Registry
from flows.stages import build_context
from flows.stages.converted_model import finished_folder
from flows.stages.finetune import data_spec
from jora_core.base.errors import InputError
from jora_core.specs.planning import SharingSpec

Counts = dict[str, Any]


def sharing_of_phases(
    config: PipelineConfig,
    store: Store,
    registry: Registry,
    lines: Sequence[PlannedStage],
    say: Callable[[str], None],
) -> dict[str, Counts]:
    """Count the tokens of the phases of a plan, with shared contexts and without.

    The counts of a finished phase are in its artifact. The tokens of a phase that would run are counted now,
    if `build-context` has built its records. The counts are exact for cached token ids and for few records.

    Args:
        config: the configuration of the plan.
        store: the artifact store.
        registry: name to stage.
        lines: the planned stages.
        say: called with a line before each slow count.

    Returns:
        Stage name to counts. For a phase that cannot be counted, `unknown` has the reason.
    """
    planned = {line.name: line for line in lines}
    phases = [phase for phase in config.phases if phase.stage in planned]
    found: dict[str, Counts] = {}
    records: Path | None = None
    model: Path | None = None
    # Checked only for a count that needs the records, because the check reads all their bytes.
    if any(planned[phase.stage].action != "cached" for phase in phases):
        records = _finished_records(config, store, planned.get(build_context.NAME), registry)
        model = finished_folder(config, store, registry)
    for phase in phases:
        line = planned[phase.stage]
        if line.action == "cached":
            found[phase.stage] = _of_artifact(store, phase.stage, line.key)
        elif records is None:
            found[phase.stage] = {"unknown": "its records are not built yet"}
        elif model is None:
            found[phase.stage] = {"unknown": "its base model is not converted yet"}
        else:
            say(f"{phase.stage}: counting the tokens of its records")
            found[phase.stage] = _counted(config, phase, model, (records, store.cache_dir), say)
    return found


def _finished_records(
    config: PipelineConfig, store: Store, planned: PlannedStage | None, registry: Registry
) -> Path | None:
    """Return the records file that the phases of a plan would read; None if it must still be built."""
    # Records under an older key are different, so their count would be wrong.
    if planned is not None and planned.action == "run":
        return None
    # The stage is not in the plan if only later stages are selected.
    key = (
        planned.key
        if planned
        else identify(config, registry, until=build_context.NAME)[build_context.NAME].key
    )
    # In a shared store alone, it is fetched by the run.
    if not store.path(build_context.NAME, key).is_dir() or not store.check(build_context.NAME, key).whole:
        return None
    return store.path(build_context.NAME, key) / build_context.RECORDS


def _of_artifact(store: Store, stage: str, key: str) -> Counts:
    manifest = store.check(stage, key).manifest
    data = (manifest or {}).get("metrics", {}).get("data", {})
    # The artifact is from a version without these counts.
    if "slots_apart" not in data:
        return {"unknown": "the artifact does not say"}
    return {
        "records": data["records"],
        "exact": True,
        "groups": data["groups"],
        "tokens": data["slots"],
        "tokens_apart": data["slots_apart"],
        # At least 1: a phase may have no record that fits.
        "factor": round(data["slots_apart"] / max(data["slots"], 1), 3),
    }


def _counted(
    config: PipelineConfig,
    phase: PhaseConfig,
    model: Path,
    data: tuple[Path, Path],
    say: Callable[[str], None],
) -> Counts:
    """Count the tokens of a phase, whose `data` are the records file and the cache folder."""
    # Outside the store, in which a plan writes nothing.
    with tempfile.TemporaryDirectory(prefix="jora-sharing-") as name:
        spec = SharingSpec(
            model=model,
            data=data_spec(config, phase, *data),
            mesh=config.mesh,
            seed=config.training_seed,
            output_dir=Path(name) / "counts",
        )
        try:
            return run_child("sharing", spec, Path(name), on_line=say)
        except (ChildError, InputError) as error:
            # The plan is useful without the count, and the phase reports the same error when it runs.
            return {"unknown": str(error).splitlines()[0]}
