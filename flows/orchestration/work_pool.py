"""Register the deployments of a configuration in a work pool, for workers on other machines.

``python -m flows.orchestration.work_pool CONFIG --pool NAME`` is for a server with several workers: Compose,
Kubernetes, Slurm. On one machine `jora serve` does this, and also starts the server and a worker.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.orchestration.prefect_server import FOLDER, PATIENCE, answers, known_urls, prepare_environment
from flows.orchestration.serving.data_triggers import run_on_changed_data
from flows.orchestration.serving.deployments import PIPELINE, deployments, served
from flows.orchestration.serving.lost_runs import watch_for_lost_runs
from jora_core.base.errors import InputError

# Without heartbeats a killed run would count as running for ever.
HEARTBEAT_SECONDS = 30
RUN_ENVIRONMENT = {
    # A run is a child of the worker and inherits its environment. Prefect would start a second endpoint on
    # the worker's port, and the run would fail with "address already in use".
    "PREFECT_CLIENT_METRICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    **PATIENCE,
}


def register(
    config: PipelineConfig,
    pool: str,
    queue: str | None = None,
    only: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Create or update the deployments of a configuration in a work pool of the configured server.

    Args:
        config: the configuration, which becomes the parameters of the deployments. Its paths must be valid
            on each machine that has a worker.
        pool: name of the work pool.
        queue: name of the work queue; None uses the pool's default queue.
        only: names of the deployments to register; empty for all.
        environment: variables of the runs. The server stores them, so a secret is a reference to a block,
            such as ``{{ prefect.blocks.secret.NAME }}``, which the worker replaces when it starts a run.

    Returns:
        The names of the deployments.

    Raises:
        InputError: no server answers, the pool does not exist, or a name is unknown.
    """
    prepare_environment()
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    found = {item.name: item for item in deployments(config)}
    if unknown := [name for name in only if name not in found]:
        raise InputError(f"no deployment {unknown[0]!r}; there are {', '.join(found)}")
    if not any(map(answers, known_urls())):
        raise InputError(
            "no Prefect server answers; set PREFECT_API_URL to http://HOST:PORT/api of a running one"
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            raise InputError(
                f"no work pool {pool!r}; create it with `prefect work-pool create {pool}`"
            ) from None
        watch_for_lost_runs(client, HEARTBEAT_SECONDS)
    chosen = [item for name, item in found.items() if not only or name in only]
    ids = {}
    for item in chosen:
        item.work_queue_name = queue
        item.job_variables = {
            **item.job_variables,
            "env": {**_environment(item.job_variables), **environment},
        }
        ids[item.name] = item.apply(work_pool_name=pool)
    if PIPELINE in ids:
        with get_client(sync_client=True) as client:
            run_on_changed_data(client, served(config), ids[PIPELINE])
    return [item.name for item in chosen]


def _environment(job_variables: dict[str, Any]) -> dict[str, str]:
    # A worker of a pool starts its runs in a temporary folder.
    return {**RUN_ENVIRONMENT, FOLDER: str(Path.cwd()), **job_variables.get("env", {})}


def _variables(lines: Sequence[str]) -> dict[str, str]:
    if wrong := [line for line in lines if not line.partition("=")[0] or "=" not in line]:
        raise InputError(f"--env {wrong[0]!r}: expected NAME=VALUE")
    return dict(line.split("=", 1) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Register the deployments of a configuration file; print their names; return the exit status."""
    parser = argparse.ArgumentParser(prog="flows.orchestration.work_pool", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the configuration, a YAML file")
    parser.add_argument("--pool", required=True, help="name of the work pool")
    parser.add_argument("--queue", help="name of the work queue; default: that of the pool")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="this deployment only; repeatable"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one value; repeatable"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the runs; repeatable"
    )
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, options.set)
        names = register(config, options.pool, options.queue, options.only, _variables(options.env))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"registered in work pool {options.pool}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
