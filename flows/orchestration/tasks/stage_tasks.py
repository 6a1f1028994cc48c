"""The Prefect task of a stage, and a flow run's order of these tasks.

The tasks pass small references to one another, never tables or arrays.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from flows.orchestration.prefect_server import prepare_environment
from jora_core.base.errors import InputError

prepare_environment()

from prefect import task
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL

from flows.children.run_child import children_end_with_block, limit_silence, stopping
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.errors import GateFailed, StageFailed
from flows.engine.keys import Identity, identify
from flows.engine.run_records import recorded_run
from flows.engine.run_stage import execute_stage
from flows.engine.shared.shared_store import open_store
from flows.orchestration.live_view import progress_shown
from flows.orchestration.server.server_outage import outages_told
from flows.orchestration.tasks.records_flow import build_records
from flows.orchestration.tasks.task_cache import result_folder, stage_key_policy, why_stale
from flows.stages import STAGES

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun


class InputsChanged(StageFailed):
    """A corpus, the model or our own code changed after the start of the run, before a stage read it."""


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may succeed: not after a wrong or changed input or a gate, and not at the run's end."""
    error = state.result(raise_on_failure=False)
    return not (stopping() or isinstance(error, InputsChanged | InputError | GateFailed))


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


def run_stages(config: PipelineConfig, names: list[str], force: bool) -> list[ArtifactRef]:
    """Run stages as tasks of the current flow run.

    Args:
        config: configuration of the pipeline.
        names: names of the stages, in the order in which they run.
        force: run the stages even where their artifacts are current.

    Returns:
        The references of the stages, in that order.
    """
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
    with (
        recorded_run(store, config, keys) as record,
        children_end_with_block(),
        outages_told(PREFECT_API_URL.value(), get_run_logger()),
    ):
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
