"""Commands of `jora` about the whole pipeline: run, plan, serve."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.commands import print_pipeline
from flows.commands.common_options import Config, Force, From, Json, Only, Set, load, print_json, say
from flows.commands.memory_plan import memory_of_phases
from flows.commands.print_memory import print_phases
from flows.commands.sharing_counts import sharing_of_phases
from flows.engine.artifact_store import Store
from flows.engine.plan import make_plan
from flows.orchestration import run_pipeline
from flows.orchestration import serve as serve_pipeline
from flows.stages import STAGES


def run(
    config: Config = None,
    only: Only = None,
    start: From = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline, or a part of it.

    Finished stages are taken from the store; a stage that was killed goes on from its last checkpoint. Uses
    the Prefect server that PREFECT_API_URL names or that `jora serve` started; else one of its own, which
    ends with the run.

    Args:
        config: configuration file.
        only: this stage alone.
        start: this stage and those after it.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    outcome = run_pipeline.run(settings, only=only, start=start, force=force, say=say)
    if as_json:
        print_json(print_pipeline.outcome_as_json(outcome.references, outcome.report))
    else:
        print_pipeline.print_outcome(outcome.references, outcome.report)


def plan(
    *,
    config: Config = None,
    only: Only = None,
    start: From = None,
    force: Force = False,
    overrides: Set = None,
    memory: Annotated[bool, typer.Option("--memory")] = False,
    as_json: Json = False,
) -> None:
    """Say per stage whether it would run, and why.

    Also counts the tokens that sharing contexts saves. Writes nothing.

    Args:
        config: configuration file.
        only: this stage alone.
        start: this stage and those after it.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        memory: Also compile each phase's step: bytes per device.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    store = Store(settings.store)
    lines = make_plan(settings, store, STAGES, only=only, start=start, force=force)
    # Also without --memory: the counts come from artifacts and caches, where they are there.
    sharing = sharing_of_phases(settings, store, STAGES, lines, say)
    needs = {}
    if memory:
        needs = memory_of_phases(settings, sharing, say)
    if as_json:
        found: dict[str, Any] = {"stages": [asdict(line) for line in lines], "sharing": sharing}
        print_json(found | ({"memory": needs} if memory else {}))
        return
    print_pipeline.print_plan(lines)
    print_pipeline.print_sharing(sharing)
    if memory:
        print_phases(needs)


def serve(
    config: Config = None,
    overrides: Set = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535)] = None,
) -> None:
    """Start web UI, deployments and worker.

    Uses the server that answers, else starts one; prints its URL; Ctrl-C ends it. The pipeline and every
    stage get a deployment; `schedule.cron` of CONFIG starts the pipeline by itself.

    Args:
        config: configuration file.
        overrides: changes of single values of the configuration.
        port: Of the server on this machine; else PREFECT_API_URL, 4200.
    """
    serve_pipeline.serve(load(config, overrides), port, say)
