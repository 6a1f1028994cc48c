"""What `jora plan` says of shared contexts: the tokens of each phase, with them and without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.child import ChildError, run_child
from flows.config import PhaseConfig, PipelineConfig
from flows.errors import InputError
from flows.keys import identify
from flows.plan import PlannedStage
from flows.stages import STAGES
from flows.stages import context as build_context
from flows.stages.base import Stage
from flows.stages.finetune import data_spec
from flows.store import Store
from jora_core.model_spec import SharingSpec

Counts = dict[str, Any]


def sharing_of_phases(
    config: PipelineConfig,
    store: Store,
    lines: Sequence[PlannedStage],
    say: Callable[[str], None],
    registry: Mapping[str, Stage] = STAGES,
) -> dict[str, Counts]:
    """Stage to counts, for the phases of a plan; one that cannot be counted has `unknown`, the reason.

    A finished phase has counted its records itself. Those of a phase that would run are counted now, where
    `build-context` has made them: exactly where their token ids are cached or they are few.
    """
    action = {line.name: line.action for line in lines}
    keys = identify(config, registry)
    found: dict[str, Counts] = {}
    for phase in config.phases:
        if phase.stage not in action:
            continue
        if action[phase.stage] == "cached":
            found[phase.stage] = _of_artifact(store, phase.stage, keys[phase.stage].key)
            continue
        artifact = store.check(build_context.NAME, keys[build_context.NAME].key)
        if action.get(build_context.NAME) == "run" or not artifact.whole:
            found[phase.stage] = {"unknown": "its records are not built yet"}
            continue
        say(f"{phase.stage}: counting the tokens of its records")
        folder = store.path(build_context.NAME, keys[build_context.NAME].key)
        found[phase.stage] = _counted(config, phase, folder / build_context.RECORDS, store.cache_dir, say)
    return found


def _of_artifact(store: Store, stage: str, key: str) -> Counts:
    manifest = store.check(stage, key).manifest
    data = (manifest or {}).get("metrics", {}).get("data", {})
    if "slots_apart" not in data:
        return {"unknown": "the artifact does not say"}
    return {
        "records": data["records"],
        "exact": True,
        "groups": data["groups"],
        "tokens": data["slots"],
        "tokens_apart": data["slots_apart"],
        "factor": round(data["slots_apart"] / max(data["slots"], 1), 3),
    }


def _counted(
    config: PipelineConfig, phase: PhaseConfig, records: Path, cache_dir: Path, say: Callable[[str], None]
) -> Counts:
    with tempfile.TemporaryDirectory(prefix="jora-sharing-") as name:
        spec = SharingSpec(
            model=Path(config.model.path),
            data=data_spec(phase, records, cache_dir),
            mesh=config.mesh,
            seed=config.seed,
            output_dir=Path(name) / "counts",
        )
        try:
            return run_child("sharing", spec, Path(name), on_line=say)
        except (ChildError, InputError) as error:
            # The plan stands without it; the phase itself will say the same when it runs.
            return {"unknown": str(error).splitlines()[0]}
