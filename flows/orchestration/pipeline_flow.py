"""The Prefect flows: `raft-pipeline` over all stages, and one flow for each stage alone.

Prefect starts and retries the stages and shows their state. :mod:`flows.engine.run_stage` and the store
decide whether a stage has work to do. Tasks pass small references to one another, never tables or arrays.
Work that needs JAX runs in child processes, which end with the run.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from flows.orchestration.prefect_server import FOLDER, prepare_environment
from jora_core.base.errors import InputError

prepare_environment()

from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from flows.children.run_child import children_end_with_block, limit_silence, stopping
from flows.configuration.load import load_config
from flows.configuration.requirements import problems
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.errors import StageFailed
from flows.engine.keys import Identity, identify
from flows.engine.plan import PlannedStage, make_plan, select
from flows.engine.run_records import recorded_run
from flows.engine.run_stage import execute_stage
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import Stage, stages_of
from flows.housekeeping.disk_space import require_space
from flows.orchestration.live_view import progress_shown, publish_plan, publish_report
from flows.orchestration.notifications import notified
from flows.orchestration.records_flow import build_records
from flows.orchestration.references import pipeline_references, report_of, verified_reference
from flows.orchestration.serving.catch_up import NAME as SKIPPED
from flows.orchestration.serving.catch_up import message as superseded_message
from flows.orchestration.serving.catch_up_runs import newer_due_run
from flows.orchestration.serving.lost_runs import note_process
from flows.orchestration.serving.stage_choice import ALL_STAGES, selection_of
from flows.orchestration.task_cache import result_folder, stage_key_policy, why_stale
from flows.stages import STAGES
from jora_core.base.secrets import mask

if TYPE_CHECKING:
    from prefect import Flow, Task
    from prefect.client.schemas.objects import FlowRun, State, TaskRun

PIPELINE = "raft-pipeline"
UNEXPECTED = "exited with unexpected exception"  # of Prefect, when a flow has failed
# The form of Prefect's UI offers the names of a `Literal` as a list to choose from. A type checker cannot
# read a `Literal` that is made at run time, so it sees a plain string.
if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[tuple(STAGES)]


class InputsChanged(StageFailed):
    """A corpus, the model or our own code changed after the start of the run, before a stage read it."""


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may succeed: not after a wrong or changed input, and not at the end of the run."""
    error = state.result(raise_on_failure=False)
    return not (stopping() or isinstance(error, InputsChanged | InputError))


@task(
    name="stage",
    # The result is the entry of Prefect's task cache; see `task_cache`. JSON, because Prefect's default
    # is a pickle, which a changed class cannot read.
    persist_result=True,
    result_serializer="json",
    cache_policy=stage_key_policy(),
    retry_condition_fn=_worth_retrying,
)
def run_stage(name: str, key: str, config: PipelineConfig, force: bool) -> dict[str, Any]:
    """Run a stage as a Prefect task, unless its artifact is current.

    Args:
        name: name of the stage.
        key: the stage's key at the start of the pipeline.
        config: configuration of the pipeline.
        force: run the stage even if its artifact is current.

    Returns:
        The fields of an `ArtifactRef`.

    Raises:
        InputsChanged: an input has changed since ``key`` was computed.
    """
    changed = InputsChanged(f"what {name} reads changed while the pipeline was running; run it again")
    store, logger = open_store(config), get_run_logger()
    try:
        with progress_shown(config, store, name, key):
            reference = execute_stage(
                name,
                config,
                store,
                STAGES,
                force=force,
                on_start=lambda line: logger.info("%s %s: %s", name, key[:8], line),
                build_records=build_records,
            )
    except Exception as error:
        # Under a changed key the upstream artifacts do not exist. The error about them hides the cause.
        if isinstance(error, InputError) and identify(config, STAGES, until=name)[name].key != key:
            raise changed from error
        raise
    if reference.key != key:
        raise changed
    return reference.model_dump(mode="json")


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
        changes: Lines like seed=1 or phases.finetune-task.max_steps=500. Each changes one value for this run.
        config: Configuration of the pipeline.
    """
    request = _Request(configuration, changes, config, force, dry_run)

    def chosen(settings: PipelineConfig) -> list[str]:
        alone, start = selection_of(stages)
        return select(settings, STAGES, only=only or alone, start=from_stage or start)

    return _answer(request, chosen)


StageScope = Literal["only this stage", "this stage and those after it", "this stage and what it needs"]


def _stage_flow(stage: Stage) -> Flow[..., Any]:
    """Return the flow that runs one stage, by default alone, on the artifacts of the stages before it."""

    def run_one(
        *,
        configuration: str | None = None,
        stages: StageScope = "only this stage",
        force: bool = False,
        dry_run: bool = False,
        changes: list[str] | None = None,
        config: PipelineConfig | None = None,
    ) -> Any:
        request = _Request(configuration, changes, config, force, dry_run)
        found = _answer(request, lambda settings: _stages_around(stage.name, stages, settings))
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
        changes: Lines like seed=1 or phases.finetune-task.max_steps=500. Each changes one value for this run.
        config: Configuration of the pipeline.
    """
    return flow(name=stage.name, persist_result=False)(run_one)


STAGE_FLOWS = {stage.name: _stage_flow(stage) for stage in STAGES.values()}
# A worker imports a deployment's flow from here by that function name.
globals().update({stage_flow.fn.__name__: stage_flow for stage_flow in STAGE_FLOWS.values()})


@dataclass(frozen=True)
class _Request:
    """The parameters that all flows have, as the run form or the API gives them."""

    configuration: str | None
    changes: list[str] | None
    config: PipelineConfig | None
    force: bool
    dry_run: bool

    def settings(self) -> PipelineConfig:
        """Return the configuration, with absolute paths.

        Raises:
            InputError: the file or a change is wrong, or no configuration is named.
        """
        if self.config is not None:
            if self.changes:
                raise InputError(
                    "changes belong to a named configuration; change the values of config itself"
                )
            # The form and the API pass the configuration as typed, with relative paths. A worker has another
            # working directory.
            return self.config.resolved()
        if self.configuration is None:
            raise InputError("configuration: this parameter is missing; give the path of a YAML file")
        # Relative paths mean the same as on the command line that registered the deployment.
        folder = Path(os.environ.get(FOLDER, "."))
        if not folder.is_dir():
            raise InputError(f"folder {folder}, from which the paths count, does not exist on this machine")
        changes = self.changes or []
        with contextlib.chdir(folder):
            found = load_config(self.configuration, changes)
            # `jora serve` has checked the file. The changes may bring what a stage would refuse hours later,
            # such as a mesh that the model cannot be split over.
            known = {problem.message for problem in problems(load_config(self.configuration))}
        for problem in problems(found):
            if problem.fatal and problem.message not in known:
                raise InputError(f"changes: {problem.message}")
        return found


def _answer(request: _Request, chosen: Callable[[PipelineConfig], list[str]]) -> Any:
    """Run the stages of a request; return their references and the path of the report.

    In a run of a deployment, a wrong input is the state `Failed` with one line, not an exception.
    """
    flow_run = _deployed_run()
    if flow_run is None:
        settings = request.settings()
        return _run_and_report(settings, chosen(settings), request.force)
    note_process(flow_run)
    if newer := newer_due_run(flow_run):
        return Cancelled(name=SKIPPED, message=superseded_message(newer))
    try:
        settings = request.settings()
        names = chosen(settings)
        plan = make_plan(
            settings,
            open_store(settings),
            STAGES,
            names=names,
            force=request.force,
            fetch=not request.dry_run,
        )
        work = sum(line.action == "run" for line in plan)
        if request.dry_run:
            publish_plan(plan)
            return Completed(message=f"dry run: {work} of {len(plan)} stages would run")
        if not work:
            return _nothing_to_run(settings, plan)
        require_space(settings, open_store(settings), [line.name for line in plan if line.action == "run"])
        publish_plan(plan)
        return _run_and_report(settings, names, request.force)
    except InputError as error:
        # In a form the changes are lines of a field, not options of a command.
        line = mask(str(error))
        if line.startswith("--set"):
            line = f"changes{line.removeprefix('--set')}"
        get_run_logger().error(line)
        # The line says it all. Prefect would add a traceback of its own engine when the process ends.
        for name in ("prefect.flow_runs", "prefect.engine"):
            logging.getLogger(name).addFilter(lambda record: UNEXPECTED not in record.getMessage())
        return Failed(message=line)


def _deployed_run() -> FlowRun | None:
    """Return the flow run of a deployment that this is; None for a run that a program has started."""
    context = FlowRunContext.get()
    found = context.flow_run if context else None
    return cast("FlowRun", found) if found is not None and found.deployment_id is not None else None


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


def _run_and_report(config: PipelineConfig, names: list[str], force: bool) -> dict[str, Any]:
    """Run stages, and write and publish the report if the artifacts of all stages exist."""
    with notified(config):
        references = _run_stages(config, names, force)
    store = open_store(config)
    # A run of one stage may complete the pipeline, so the report looks at all stages and not at the
    # selected ones.
    whole = pipeline_references(config, store, references)
    report = report_of(config, store, whole)
    if whole is not None and any(not reference.cached for reference in references):
        publish_report(config, store, whole)
    return _outcome(references, report)


def _nothing_to_run(config: PipelineConfig, plan: Sequence[PlannedStage]) -> State[Any]:
    """Return the state of a run whose stages are all current. It publishes nothing."""
    store = open_store(config)
    # The plan has verified every byte a moment ago.
    references = [verified_reference(line.name, line.key, store) for line in plan]
    message = f"nothing to run: {len(plan)} stages verified"
    get_run_logger().info("%s; the report and the artifacts of the run that made them stay", message)
    complete = {line.name for line in plan} == {stage.name for stage in stages_of(config, STAGES)}
    report = report_of(config, store, references) if complete else None
    return Completed(message=message, data=_outcome(references, report))


def _outcome(references: Sequence[ArtifactRef], report: Path | None) -> dict[str, Any]:
    return {
        "stages": [reference.model_dump(mode="json") for reference in references],
        "report": str(report) if report else None,
    }


def _run_stages(config: PipelineConfig, names: list[str], force: bool) -> list[ArtifactRef]:
    """Run stages as tasks of the current flow run; return their references in order."""
    store = open_store(config)
    # Before the first lock is taken, so that nothing of this run can be swept.
    store.sweep()
    identities = identify(config, STAGES)
    # Stages that read from no other (records, base weights) run side by side; the others use the devices
    # and run one after another in the main thread, which signals interrupt.
    first = [name for name in names if not identities[name].upstream]
    rest = [name for name in names if name not in first]
    states: dict[str, State[dict[str, Any]]] = {}
    keys = {name: identities[name].key for name in names}
    limit_silence(config.retries.no_progress_seconds)
    with recorded_run(store, config, keys) as record, children_end_with_block():
        record.begin()
        if len(first) > 1:
            calls = {name: _task(name, config, store, identities, force) for name in first}
            # On Prefect's threads. Each thread only waits for a child process, so two threads are no load.
            runs = {name: call.submit(*arguments) for name, (call, arguments) in calls.items()}
            # All of them end before a failure is raised: a nearly finished stage is kept for the next run.
            for name, run in runs.items():
                run.wait()
                states[name] = run.state
        else:
            rest = names
        for name in rest:
            # Raises the error of a stage that failed; with `return_state` Prefect itself raises nothing.
            for state in states.values():
                state.result()
            call, arguments = _task(name, config, store, identities, force)
            # The edges of the task graph: tasks pass keys, from which Prefect cannot see them.
            upstream = [states[other] for other in identities[name].upstream if other in states]
            states[name] = cast(
                "State[dict[str, Any]]", call(*arguments, wait_for=upstream, return_state=True)
            )
        references = [_reference(states[name], store) for name in names]
        for reference in references:
            record.finished(reference)
        return references


def _task(
    name: str, config: PipelineConfig, store: Store, identities: Mapping[str, Identity], force: bool
) -> tuple[Task[..., dict[str, Any]], tuple[Any, ...]]:
    """Return the task of one stage, configured for the state of its artifact, and its arguments."""
    key = identities[name].key
    stale = why_stale(name, identities, store)
    retries = config.retries
    call = run_stage.with_options(
        name=name,
        task_run_name=f"{name} {key[:8]}",
        retries=retries.max_retries,
        # Exponential: a full GPU or a failed network needs minutes more often than seconds.
        retry_delay_seconds=[retries.delay_seconds * 2**attempt for attempt in range(retries.max_retries)],
        retry_jitter_factor=retries.jitter,
        # Prefect must not use its cache if the artifact itself is not current.
        # Neither if it is in a shared store only, from which the run brings it.
        refresh_cache=force or stale is not None or not store.path(name, key).is_dir(),
        result_storage=result_folder(store),
    )
    return call, (name, key, config, force)


def _reference(state: State[dict[str, Any]], store: Store) -> ArtifactRef:
    """Return the reference of a finished task, or raise the error of a failed task."""
    found = ArtifactRef.model_validate(state.result())
    # A cached result describes an earlier run, perhaps with the store at another path.
    now: dict[str, Any] = {"path": str(store.path(found.stage, found.key))}
    if state.name == "Cached":
        now |= {"cached": True, "seconds": 0.0, "reason": ""}
    return found.model_copy(update=now)
