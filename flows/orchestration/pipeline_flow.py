"""The Prefect flows: `raft-pipeline` over all stages, and one flow for each stage alone.

Prefect starts and retries the stages and shows their state. :mod:`flows.engine.run_stage` and the store
decide whether a stage has work to do. Work that needs JAX runs in child processes, which end with the run.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from flows.orchestration.prefect_server import prepare_environment

prepare_environment()

from prefect import flow

from flows.configuration.schema import PipelineConfig
from flows.engine.keys import identify
from flows.engine.plan import select
from flows.orchestration.flow_runs import answer
from flows.orchestration.serving.run_request import RunRequest
from flows.orchestration.serving.stage_choice import ALL_STAGES, selection_of
from flows.stages import STAGES

if TYPE_CHECKING:
    from prefect import Flow

PIPELINE = "raft-pipeline"
# The form of Prefect's UI offers the names of a `Literal` as a list to choose from. A type checker cannot
# read a `Literal` that is made at run time, so it sees a plain string.
if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[tuple(STAGES)]


@flow(name=PIPELINE, persist_result=False)
def raft_pipeline(
    *,
    configuration: str | None = None,
    stages: str = ALL_STAGES,
    only: StageName | None = None,
    from_stage: StageName | None = None,
    force: bool = False,
    dry_run: bool = False,
    changes: list[str] | None = None,
    config: PipelineConfig | None = None,
) -> Any:
    """Run all stages from raw corpora to an exported model. Finished stages are taken from the store.

    Args:
        configuration: Which configuration to run.
        stages: Which stages to run. Those that are up to date are taken from the store.
        only: Run this stage alone, on the artifacts of the stages before it.
        from_stage: Run this stage and those after it.
        force: Run the selected stages even where their artifacts are current.
        dry_run: Only say what would run, and why.
        changes: Items like seed=1 or phases.finetune-task.max_steps=500. Each changes one value for this run.
        config: Configuration of the pipeline.
    """
    request = RunRequest(configuration, changes, config, force, dry_run)

    def chosen(settings: PipelineConfig) -> list[str]:
        alone, start = selection_of(stages)
        return select(settings, STAGES, only=only or alone, start=from_stage or start)

    return answer(request, chosen)


StageScope = Literal["only this stage", "this stage and those after it", "this stage and what it needs"]


@cache
def stage_flow(name: str) -> Flow[..., Any]:
    """Return the flow that runs one stage, by default alone, on the artifacts of the stages before it."""
    stage = STAGES[name]

    def run_one(
        *,
        configuration: str | None = None,
        stages: StageScope = "only this stage",
        force: bool = False,
        dry_run: bool = False,
        changes: list[str] | None = None,
        config: PipelineConfig | None = None,
    ) -> Any:
        request = RunRequest(configuration, changes, config, force, dry_run)
        found = answer(request, lambda settings: _stages_around(stage.name, stages, settings))
        if isinstance(found, dict):
            # The reference of this stage; the report and the other stages stand beside it.
            own = [reference for reference in found["stages"] if reference["stage"] == stage.name]
            return {**found, **(own[0] if own else {})}
        return found

    # A deployment names its flow by module and function, so each flow needs a function name of its own.
    run_one.__name__ = run_one.__qualname__ = stage.name.replace("-", "_")
    run_one.__doc__ = f"""{stage.description}

    Args:
        configuration: Which configuration to run.
        stages: What the run includes. The stages that this stage needs run only if they are not up to date.
        force: Run even where the artifacts are current.
        dry_run: Only say what would run, and why.
        changes: Items like seed=1 or phases.finetune-task.max_steps=500. Each changes one value for this run.
        config: Configuration of the pipeline.
    """
    return flow(name=stage.name, persist_result=False)(run_one)


def __getattr__(name: str) -> Flow[..., Any]:
    """Return the flow of a stage by its function name, by which a worker imports it from here.

    Made when it is asked for, because Prefect takes a tenth of a second to describe the parameters of each.
    """
    if (stage := name.replace("_", "-")) in STAGES:
        return stage_flow(stage)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _stages_around(name: str, scope: StageScope, config: PipelineConfig) -> list[str]:
    """Return the stages of a run of one stage, in the order in which they run."""
    if scope == "this stage and those after it":
        return select(config, STAGES, start=name)
    if scope == "only this stage":
        return select(config, STAGES, only=name)
    identities = identify(config, STAGES, until=name)
    needed, queue = {name}, [name]
    while queue:
        for upstream in identities[queue.pop()].upstream:
            if upstream not in needed:
                needed.add(upstream)
                queue.append(upstream)
    return [stage for stage in identities if stage in needed]
