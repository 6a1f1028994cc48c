"""The Prefect flows: `raft-pipeline` over all stages, and one flow for each stage alone.

Prefect starts and retries the stages and shows their state. :mod:`flows.engine.run_stage` and the store
decide whether a stage has work to do. Tasks pass small references to one another, never tables or arrays.
Work that needs JAX runs in child processes, which end with the run.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from flows.orchestration.prefect_server import prepare_environment
from jora_core.base.errors import InputError

prepare_environment()

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from flows.children.run_child import children_end_with_block, stopping
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.errors import StageFailed
from flows.engine.keys import Identity, identify
from flows.engine.plan import select
from flows.engine.run_records import recorded_run
from flows.engine.run_stage import execute_stage
from flows.engine.stage import Stage
from flows.orchestration.records_flow import build_records
from flows.orchestration.references import pipeline_references, report_of
from flows.orchestration.task_cache import result_folder, stage_key_policy, why_stale
from flows.report.page import markdown_sections
from flows.stages import STAGES

if TYPE_CHECKING:
    from prefect import Flow, Task
    from prefect.client.schemas.objects import State, TaskRun

PIPELINE = "raft-pipeline"
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
    try:
        reference = execute_stage(
            name,
            config,
            Store(config.store),
            STAGES,
            force=force,
            on_start=get_run_logger().info,
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
    only: StageName | None = None,
    from_stage: StageName | None = None,
    force: bool = False,
    config: PipelineConfig,
) -> dict[str, Any]:
    """Run all stages from raw corpora to an exported model. Finished stages are taken from the store.

    Prefect's run form shows the parameters in this order, so the long configuration is the last one.

    Args:
        only: Run this stage alone, on the artifacts of the stages before it.
        from_stage: Run this stage and those after it.
        force: Run the selected stages even where their artifacts are current.
        config: Configuration of the pipeline.
    """
    # The form and the API pass the configuration as typed, with relative paths. A worker has another working
    # directory.
    config = config.resolved()
    references = _run_stages(config, only, from_stage, force)
    store = Store(config.store)
    # A run of one stage may complete the pipeline, so the report looks at all stages and not at the
    # selected ones.
    whole = pipeline_references(config, store, references)
    report = report_of(config, store, whole)
    if whole is not None:
        _publish(config, whole)
    return {
        "stages": [reference.model_dump(mode="json") for reference in references],
        "report": str(report) if report else None,
    }


def _publish(config: PipelineConfig, whole: list[ArtifactRef]) -> None:
    """Show the report's sections as markdown artifacts of the current flow run."""
    for name, text in markdown_sections(config, whole).items():
        create_markdown_artifact(text, key=f"report-{name}", description=f"Report: {name.replace('-', ' ')}")


def _stage_flow(stage: Stage) -> Flow[..., dict[str, Any]]:
    """Return the flow that runs one stage alone, on the artifacts of the stages before it."""

    def run_one(*, force: bool = False, config: PipelineConfig) -> dict[str, Any]:
        (reference,) = _run_stages(config.resolved(), stage.name, None, force)
        return reference.model_dump(mode="json")

    # A deployment names its flow by module and function, so each flow needs a function name of its own.
    run_one.__name__ = run_one.__qualname__ = stage.name.replace("-", "_")
    run_one.__doc__ = stage.description
    return flow(name=stage.name, persist_result=False)(run_one)


STAGE_FLOWS = {stage.name: _stage_flow(stage) for stage in STAGES.values()}
# A worker imports a deployment's flow from here by that function name.
globals().update({stage_flow.fn.__name__: stage_flow for stage_flow in STAGE_FLOWS.values()})


def _run_stages(
    config: PipelineConfig, only: str | None, start: str | None, force: bool
) -> list[ArtifactRef]:
    """Run the selected stages as tasks of the current flow run; return their references in order."""
    store = Store(config.store)
    # Before the first lock is taken, so that nothing of this run can be swept.
    store.sweep()
    identities = identify(config, STAGES)
    names = select(config, STAGES, only=only, start=start)
    # Stages that read from no other (records, base weights) run side by side; the others use the devices
    # and run one after another in the main thread, which signals interrupt.
    first = [name for name in names if not identities[name].upstream]
    rest = [name for name in names if name not in first]
    states: dict[str, State[dict[str, Any]]] = {}
    keys = {name: identities[name].key for name in names}
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
            states[name] = cast("State[dict[str, Any]]", call(*arguments, return_state=True))
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
        refresh_cache=force or stale is not None,
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
