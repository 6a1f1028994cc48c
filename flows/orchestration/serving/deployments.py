"""The deployments of `jora serve`: the pipeline with its schedules, its advanced form, and each stage.

All of them take the name of a configuration, which is the path of its file. A run reads the file when it
starts, so an edit of the file needs no restart; a change of the schedule does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.configuration.schedule import check_schedule
from flows.configuration.schema import PHASE_STAGES, PipelineConfig
from flows.engine.stage import stages_of
from flows.orchestration.prefect_server import prefect_home, prepare_environment
from flows.orchestration.serving.run_form import changes_schema, chosen_from, shown_properties
from flows.orchestration.serving.stage_choice import ALL_STAGES, stage_choices
from flows.stages import STAGES
from jora_core.base.atomic_files import write_bytes
from jora_core.base.secrets import refuse_credentials

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment

PIPELINE = "raft-pipeline"
FLOWS = "flows.orchestration.pipeline_flow"
WATCH = "data-watch"
WATCH_FLOW = "flows.orchestration.data_watch_flow"
ADVANCED = "advanced"
TAG = "jora-raft"
TITLES = {
    "configuration": "Configuration",
    "stages": "Stages",
    "force": "Force",
    "dry_run": "Dry run",
    "changes": "Changes",
    "config": "Configuration",
}
FORM = ("configuration", "stages", "force", "dry_run", "changes")
ADVANCED_FORM = ("stages", "force", "dry_run", "config")
WATCH_FORM = ("configuration", "changes")


@dataclass(frozen=True)
class Served:
    """One configuration that `jora serve` serves.

    Attributes:
        name: path of the file, from the working directory if it lies there.
        config: the configuration at the start of `jora serve`.
        changes: the changes of `--set`, which become the first changes of the form.
    """

    name: str
    config: PipelineConfig
    changes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Short name for deployments: `qa` for `flows/configs/qa.yaml`."""
        return Path(self.name).stem

    @property
    def slug(self) -> str:
        """Name of its schedules, by which a second registration changes them instead of adding others."""
        return f"{self.title}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}".lower()

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the runs that a schedule or an automation starts."""
        return {"configuration": self.name, "changes": list(self.changes)}


def served(configs: PipelineConfig | Sequence[PipelineConfig]) -> list[Served]:
    """Return the configurations to serve, each once, in the given order.

    Raises:
        InputError: a change of `--set`, which the deployments show, has a password or a token.
    """
    many = [configs] if isinstance(configs, PipelineConfig) else list(configs)
    found: dict[str, Served] = {}
    for config in many:
        source = config.source
        refuse_credentials(source.overrides if source else (), "--set")
        file = Path(source.file).resolve() if source else _written(config)
        name = str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
        found.setdefault(name, Served(name, config, source.overrides if source else ()))
    return list(found.values())


def deployments(configs: PipelineConfig | Sequence[PipelineConfig]) -> list[RunnerDeployment]:
    """Return the deployments of configurations: pipeline, advanced forms, data watch, one for each stage.

    Args:
        configs: one or several configurations. The first one is the default of the forms.

    Raises:
        InputError: a schedule is not valid.
    """
    prepare_environment()
    # By name, as a worker finds it: the module imports Prefect, which takes seconds.
    pipeline_flow = import_module(FLOWS)
    items = served(configs)
    wanted = {stage.name for item in items for stage in stages_of(item.config, STAGES)}
    pipeline = pipeline_flow.raft_pipeline
    made = [_deployment(pipeline, PIPELINE, items, FORM, schedules=_schedules(items))]
    for item in items:
        name = ADVANCED if len(items) == 1 else f"{ADVANCED}-{item.title}"
        made.append(_deployment(pipeline, name, [item], ADVANCED_FORM))
    watch = import_module(WATCH_FLOW).data_watch
    made.append(_deployment(watch, WATCH, items, WATCH_FORM, schedules=_watch_schedules(items)))
    made += [
        _deployment(pipeline_flow.stage_flow(name), name, items, FORM) for name in STAGES if name in wanted
    ]
    return made


def _deployment(
    flow: Flow[..., Any],
    name: str,
    items: Sequence[Served],
    form: Sequence[str],
    schedules: Sequence[Any] = (),
) -> RunnerDeployment:
    """Return a deployment whose form shows some parameters of the flow.

    Args:
        flow: flow of the pipeline or of a stage.
        name: name of the deployment.
        items: the configurations to choose from.
        form: names of the parameters in the form, in their order.
        schedules: schedules of the deployment. An empty list removes earlier ones.
    """
    from prefect.types.entrypoint import EntrypointType
    from prefect.utilities.callables import ParameterSchema, parameter_schema

    first = items[0]
    if "config" in form:
        parameters: dict[str, Any] = {"config": first.config.model_dump(mode="json", exclude={"schedule"})}
    else:
        parameters = {"configuration": first.name, "changes": list(first.changes)}
    made = cast(
        # Awaitable only where an event loop runs, says Prefect's type; here none does.
        "RunnerDeployment",
        flow.to_deployment(
            name=name,
            parameters=parameters,
            schedules=list(schedules),
            description=_description(flow, name),
            tags=[TAG],
            # By module, not by file: the worker finds the flows at any place of installation.
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
    )
    whole = parameter_schema(flow)
    properties = shown_properties(whole.properties, form)
    definitions = dict(whole.definitions) if "config" in form else {}
    for parameter, schema in properties.items():
        properties[parameter] = {**_field(parameter, schema, items), "title": TITLES[parameter]}
    # The schedule of a run's configuration would do nothing.
    if definitions:
        definitions["PipelineConfig"] = _without(definitions["PipelineConfig"], "schedule")
        definitions.pop("ScheduleConfig", None)
    made._parameter_openapi_schema = ParameterSchema(
        title="Parameters",
        properties=properties,
        required=[parameter for parameter in ("configuration", "config") if parameter in form],
        definitions=definitions,
    )
    return made


def _field(name: str, schema: dict[str, Any], items: Sequence[Served]) -> dict[str, Any]:
    """Return the schema of one field of a form."""
    if name == "configuration":
        return {**chosen_from(schema, [item.name for item in items]), "default": items[0].name}
    # The stages of a stage's own flow are a list already.
    if name == "stages" and "enum" not in schema:
        wanted = {stage.name for item in items for stage in stages_of(item.config, STAGES)}
        choices = stage_choices([stage for stage in STAGES if stage in wanted])
        return {**chosen_from(schema, choices), "default": ALL_STAGES}
    if name == "changes":
        return changes_schema(schema, PipelineConfig, {"phases": PHASE_STAGES})
    if name == "config":
        kept = {key: schema[key] for key in ("description", "position")}
        return {**kept, "allOf": [{"$ref": "#/definitions/PipelineConfig"}]}
    return schema


def _without(schema: dict[str, Any], name: str) -> dict[str, Any]:
    properties = {key: value for key, value in schema["properties"].items() if key != name}
    return {**schema, "properties": properties}


def _description(flow: Flow[..., Any], name: str) -> str:
    text = (flow.fn.__doc__ or "").split("\n\n")[0]
    return f"{text} Every value of the configuration can be changed." if name.startswith(ADVANCED) else text


def _schedules(items: Sequence[Served]) -> list[Any]:
    """Return the schedules of the configurations that have one, each with its configuration as parameter."""
    from prefect.schedules import Cron

    found = []
    for item in items:
        schedule = item.config.schedule
        check_schedule(schedule, item.name)
        if schedule.cron is not None:
            cron = Cron(schedule.cron, timezone=schedule.timezone, parameters=item.parameters, slug=item.slug)
            found.append(cron)
    return found


def _watch_schedules(items: Sequence[Served]) -> list[Any]:
    """Return the intervals of the configurations whose sources are looked at again and again."""
    from prefect.schedules import Interval

    return [
        Interval(timedelta(minutes=minutes), parameters=item.parameters, slug=item.slug)
        for item in items
        if (minutes := item.config.schedule.watch_minutes) is not None
    ]


def _written(config: PipelineConfig) -> Path:
    """Write a configuration that a program has made to a file, from which the runs read it."""
    text = config.model_dump_json(indent=1)
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    path = prefect_home() / "jora-serve" / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # JSON is YAML.
    write_bytes(path, text.encode())
    return path.resolve()
