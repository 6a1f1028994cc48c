"""The command `jora serve`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import print_pipeline
from flows.commands.common_options import Set, load, print_status
from flows.orchestration import serve as serve_pipeline
from flows.orchestration.serving import status


def serve(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CONFIG]...", help="YAML files; without one, as in `jora run`."),
    ] = None,
    overrides: Set = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535)] = None,
    check: Annotated[bool, typer.Option("--check")] = False,
) -> None:
    """Start web UI, deployments and worker.

    Uses a Prefect server that answers, else starts one, and prints its URL. Ctrl-C ends the command. The
    pipeline and every stage get a deployment, whose form offers all CONFIG. `schedule.cron` of a CONFIG runs
    it on a schedule. Reports are served on this machine.

    Args:
        configs: configuration files.
        overrides: changes of single values of the configuration.
        port: Port of the server on this machine; else PREFECT_API_URL, 4200.
        check: Say what is up, what is not, and what to do; start nothing. Exit status 1 if a part is down.
    """
    settings = [load(path, overrides, ready=not check) for path in configs or [None]]
    if not check:
        serve_pipeline.serve(settings, port, print_status)
        return
    words = [*map(str, configs or []), *(["--port", str(port)] if port else [])]
    parts = status.check(settings, shlex.join(["jora", "serve", *words]), port)
    print_pipeline.print_findings(
        [print_pipeline.Finding(part.name, part.state, part.detail) for part in parts]
    )
    if any(part.state == "fail" for part in parts):
        raise typer.Exit(1)
