"""What a flow run does with a request: plan, run the stages, write the report, or refuse with one line."""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.orchestration.prefect_server import prepare_environment

prepare_environment()

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef
from flows.engine.errors import GateFailed
from flows.engine.plan import PlannedStage, make_plan
from flows.engine.run_records import started_by
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import stages_of
from flows.housekeeping.disk_space import require_space
from flows.orchestration.live_view import publish_plan, publish_report, report_place
from flows.orchestration.notifications import notified
from flows.orchestration.references import pipeline_references, report_of, verified_reference
from flows.orchestration.serving.catch_up import NAME as SKIPPED
from flows.orchestration.serving.catch_up import message as superseded_message
from flows.orchestration.serving.catch_up_runs import newer_due_run
from flows.orchestration.serving.lost_runs import note_process
from flows.orchestration.serving.run_request import RunRequest
from flows.orchestration.tasks.stage_tasks import run_stages
from flows.report.page import report_page
from flows.stages import STAGES
from jora_core.base.errors import InputError
from jora_core.base.secrets import mask

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

UNEXPECTED = "exited with unexpected exception"  # of Prefect, when a flow has failed


def answer(request: RunRequest, chosen: Callable[[PipelineConfig], list[str]]) -> Any:
    """Run the stages of a request.

    In a run of a deployment, a wrong input is the state `Failed` with one line, not an exception.

    Args:
        request: the parameters of the flow run.
        chosen: names of the selected stages of a configuration, in the order in which they run.

    Returns:
        The references of the stages and the path of the report, or a state of Prefect.
    """
    flow_run = deployed_run()
    if flow_run is None:
        settings = request.settings()
        return _run_and_report(settings, chosen(settings), request.force)[0]
    if skipped := begin(flow_run):
        return skipped
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
        with started_by(starter(flow_run)):
            outcome, place = _run_and_report(settings, names, request.force)
        made = sum(not stage["cached"] for stage in outcome["stages"])
        return Completed(message=f"{made} of {len(outcome['stages'])} stages ran{place}", data=outcome)
    except (InputError, GateFailed) as error:
        return refused(error)


def starter(flow_run: FlowRun) -> str:
    """Return what has started a run of a deployment, for its record."""
    by = flow_run.created_by
    if by is not None and by.type == "AUTOMATION":
        what = f"automation {by.display_value or by.id}"
    else:
        what = "schedule" if flow_run.auto_scheduled else "web form or API"
    return f"{what}, flow run {flow_run.name}"


def begin(flow_run: FlowRun) -> State[Any] | None:
    """Note the process of a deployment's run; return the state of a run that a newer due one replaces."""
    note_process(flow_run)
    newer = newer_due_run(flow_run)
    if newer is None:
        return None
    get_run_logger().info(superseded_message(newer))
    _no_traceback_at_the_end()
    return Cancelled(name=SKIPPED, message=superseded_message(newer))


def refused(error: InputError | GateFailed) -> State[Any]:
    """Log a wrong input or a failed gate of a deployment's run in one line, and return the run's state."""
    # In a form the changes are lines of a field, not options of a command.
    line = mask(str(error))
    if line.startswith("--set"):
        line = f"changes{line.removeprefix('--set')}"
    get_run_logger().error(line)
    _no_traceback_at_the_end()
    return Failed(message=line)


def _no_traceback_at_the_end() -> None:
    """Keep Prefect from adding a traceback of its engine to the line that has said all, when a run ends."""
    for name in ("prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(lambda record: UNEXPECTED not in record.getMessage())


def deployed_run() -> FlowRun | None:
    """Return the flow run of a deployment that this is; None for a run that a program has started."""
    context = FlowRunContext.get()
    found = context.flow_run if context else None
    return cast("FlowRun", found) if found is not None and found.deployment_id is not None else None


def _run_and_report(config: PipelineConfig, names: list[str], force: bool) -> tuple[dict[str, Any], str]:
    """Run stages, and write and publish the report if the artifacts of all stages exist.

    Returns:
        The outcome, and what to say of the report's place.
    """
    store = open_store(config)
    try:
        with notified(config):
            references = run_stages(config, names, force)
    except GateFailed:
        # All stages before the export have their artifacts, and the report shows which gate it was.
        made = pipeline_references(config, store, [], before="export")
        if made is not None:
            report_of(config, store, made)
            publish_report(config, store, made)
        raise
    # A run of one stage may complete the pipeline, so the report looks at all stages and not at the
    # selected ones.
    whole = pipeline_references(config, store, references)
    outcome = _outcome(references, report_of(config, store, whole))
    if whole is not None and any(not reference.cached for reference in references):
        publish_report(config, store, whole)
    return outcome, _place(config, whole)


def _nothing_to_run(config: PipelineConfig, plan: Sequence[PlannedStage]) -> State[Any]:
    """Return the state of a run whose stages are all current. It publishes nothing."""
    store = open_store(config)
    # The plan has verified every byte a moment ago.
    references = [verified_reference(line.name, line.key, store) for line in plan]
    message = f"nothing to run: {len(plan)} stages verified"
    get_run_logger().info("%s; the report and the artifacts of the run that made them stay", message)
    complete = {line.name for line in plan} == {stage.name for stage in stages_of(config, STAGES)}
    whole = references if complete else None
    outcome = _outcome(references, report_of(config, store, whole))
    return Completed(message=f"{message}{_place(config, whole)}", data=outcome)


def _place(config: PipelineConfig, whole: Sequence[ArtifactRef] | None) -> str:
    """Say where the report of these artifacts is, for the state of a run, or why there is none."""
    if whole is None:
        return "; no report: not every stage has an artifact for these settings and data"
    store = open_store(config)
    # `report_of` has written it. Not the copy, which later runs replace.
    page = report_page(store, {reference.stage: reference.key for reference in whole})
    return f"; report: {report_place(store, page)}"


def _outcome(references: Sequence[ArtifactRef], report: Path | None) -> dict[str, Any]:
    return {
        "stages": [reference.model_dump(mode="json") for reference in references],
        "report": str(report) if report else None,
    }
