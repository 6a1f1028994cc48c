"""Automations of the server that run the pipeline when the sources of a configuration have changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from flows.orchestration.notifications import DATA_CHANGED, project_resource
from flows.orchestration.serving.deployments import Served

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

AUTOMATION = "jora-raft: changed data of"


def run_on_changed_data(client: SyncPrefectClient, items: Sequence[Served], pipeline: UUID) -> None:
    """Create or update an automation for each configuration, which runs the pipeline for each event.

    One run at a time is the worker's rule. Of several runs that wait, only the newest one runs
    (:mod:`flows.orchestration.serving.catch_up`).

    Args:
        client: client of the server.
        items: the served configurations.
        pipeline: id of the pipeline's deployment.
    """
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    for item in items:
        resource = project_resource(item.config.project)
        name = f"{AUTOMATION} {item.name}"
        wanted = AutomationCore(
            name=name,
            description="Runs the pipeline when data-watch or `jora watch` has found changed sources.",
            trigger=EventTrigger(
                expect={DATA_CHANGED},
                match=ResourceSpecification({"prefect.resource.id": resource}),
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            # pyright takes the union of all actions as invariant.
            actions=[  # type: ignore[reportArgumentType]
                RunDeployment(
                    source="selected",
                    deployment_id=pipeline,
                    parameters=item.parameters,
                    job_variables=None,
                )
            ],
        )
        known = client.read_automations_by_name(name)
        if known:
            # A user who has switched it off wants it off.
            client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))
        else:
            client.create_automation(wanted)
