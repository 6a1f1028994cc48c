"""What `jora serve --check` says: what is up, what is not, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from flows.configuration.schema import PipelineConfig
from flows.orchestration.prefect_server import (
    DEFAULT_PORT,
    answers,
    check_access,
    known_urls,
    local_url,
    prepare_environment,
    require_free,
)
from flows.orchestration.server.serve_lock import serving_process
from flows.orchestration.serving.deployments import PIPELINE, Served, served
from flows.orchestration.serving.lost_runs import AUTOMATION
from jora_core.base.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WORKER_SILENCE = timedelta(minutes=1)  # a worker asks for runs every ten seconds


@dataclass(frozen=True)
class Part:
    """One part of a served pipeline: whether it is up, and what to do if not."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


def check(configs: Sequence[PipelineConfig], command: str, port: int | None = None) -> list[Part]:
    """Return the state of server, deployments, worker, schedules and runs.

    Args:
        configs: the configurations that should be served.
        command: the command that serves them, which the advice names.
        port: port of the server on this machine; None takes the known addresses.
    """
    prepare_environment()
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    urls = known_urls() if port is None else [local_url(port)]
    url = next(filter(answers, urls), None)
    if url is None:
        tried = f"at {', '.join(urls)}" if urls else "(no address is known)"
        found = [_absent("server", f"none answers {tried}", command)]
        # A server that starts has its port already.
        if serving_process() is None:
            try:
                require_free(port or DEFAULT_PORT)
            except InputError as error:
                found.append(Part("port", "fail", str(error)))
        return found
    try:
        check_access(url)
    except InputError as error:
        return [Part("server", "fail", str(error))]
    found = [Part("server", "ok", f"answers at {url}")]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        found += _deployments(client, served(configs), command)
        watched = bool(client.read_automations_by_name(AUTOMATION))
    advice = "runs of a killed machine are marked as crashed" if watched else f"missing; run `{command}`"
    return [*found, Part("watch for lost runs", "ok" if watched else "warn", advice)]


def _deployments(client: SyncPrefectClient, items: Sequence[Served], command: str) -> list[Part]:
    from prefect.exceptions import ObjectNotFound

    try:
        pipeline = client.read_deployment_by_name(f"{PIPELINE}/{PIPELINE}")
    except ObjectNotFound:
        return [_absent("deployments", f"{PIPELINE} is not registered", command)]
    offered = (
        (pipeline.parameter_openapi_schema or {})
        .get("properties", {})
        .get("configuration", {})
        .get("enum", [])
    )
    missing = [item.name for item in items if item.name not in offered]
    found = [
        Part("deployments", "fail", _not_served(missing, offered, command))
        if missing
        else Part("deployments", "ok", f"{PIPELINE} offers {', '.join(offered)}")
    ]
    polled = pipeline.last_polled
    now = datetime.now(UTC)
    if polled is None or now - polled > WORKER_SILENCE:
        since = f"since {polled:%Y-%m-%d %H:%M} UTC" if polled else "yet"
        found.append(_absent("worker", f"none has asked for runs {since}", command))
    else:
        found.append(Part("worker", "ok", f"asked for runs {(now - polled).seconds} s ago"))
    return [*found, *_schedules(pipeline, items, command), *_runs(client, pipeline)]


def _not_served(missing: Sequence[str], offered: Sequence[str], command: str) -> str:
    """Say that configurations are not served, which ones are, and what to do."""
    said = f"{', '.join(missing)} is not served"
    if not offered:
        return f"{said}; run `{command}`"
    return (
        f"{said}, but {', '.join(offered)} is: look at it with `jora serve --check {offered[0]}`; to serve "
        "both, end `jora serve` and name all configurations"
    )


def _absent(name: str, detail: str, command: str) -> Part:
    """Return a part that is not up: not started, or still starting."""
    process = serving_process()
    if process is None:
        return Part(name, "fail", f"{detail}; run `{command}`")
    # On a busy machine a start takes minutes.
    return Part(name, "warn", f"{detail}; `jora serve` runs (process {process}): wait until it says so")


def _schedules(pipeline: Any, items: Sequence[Served], command: str) -> list[Part]:
    known = {
        entry.parameters.get("configuration"): entry
        for entry in pipeline.schedules
        if entry.schedule is not None
    }
    found = []
    for item in items:
        wanted, entry = item.config.schedule, known.get(item.name)
        name = f"schedule of {item.name}"
        if wanted.cron is None and entry is None:
            found.append(Part(name, "ok", "none; schedule.cron of the configuration sets one"))
        elif entry is None or (entry.schedule.cron, entry.schedule.timezone) != (
            wanted.cron,
            wanted.timezone,
        ):
            found.append(
                Part(name, "fail", f"the server has another one than the file; start `{command}` again")
            )
        elif pipeline.paused or not entry.active:
            found.append(Part(name, "warn", "paused; resume it on the page of the deployment"))
        else:
            found.append(Part(name, "ok", f"{wanted.cron} ({wanted.timezone})"))
    return found


def _runs(client: SyncPrefectClient, pipeline: Any) -> list[Part]:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterStartTime,
    )
    from prefect.client.schemas.sorting import FlowRunSort

    runs = client.read_flow_runs(
        # Runs that a schedule has planned count as later than those that have begun.
        flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False)),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[pipeline.id])),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    state = runs[0].state if runs else None
    if state is None:
        return [Part("last run", "ok", "none so far")]
    text = f"{runs[0].name}: {state.name}" + (f", {state.message}" if state.message else "")
    return [Part("last run", "warn" if state.name in ("Failed", "Crashed") else "ok", text)]
