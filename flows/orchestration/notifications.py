"""Messages about finished and failed runs, and events about changed data, through Prefect."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from flows.configuration.schema import PipelineConfig
from flows.housekeeping.data_watch import Changes
from flows.orchestration.prefect_server import answers, known_urls, prepare_environment, use_api

DATA_CHANGED = "raft.data.changed"
MOST_NAMES = 50

logger = logging.getLogger("jora.notify")


@contextmanager
def notified(config: PipelineConfig) -> Iterator[None]:
    """Send a message through the blocks of `notify` when the block ends or fails.

    A message that cannot be sent is a warning: it must not fail a run.
    """
    name = config.project or "pipeline"
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _send(config, f"{name}: run failed", reason)
        raise
    _send(config, f"{name}: run finished", f"all selected stages are up to date in {config.store}")


def emit_data_changed(config: PipelineConfig, changes: Changes) -> str | None:
    """Emit the event `raft.data.changed` to the Prefect server that answers.

    The event names at most `MOST_NAMES` files of each kind, because Prefect refuses large events. Its counts
    are of all files.

    Returns:
        The server's address; None if no server answers.
    """
    prepare_environment()
    for url in known_urls():
        if not answers(url):
            continue
        from prefect.events import emit_event

        project = config.project or "pipeline"
        kinds = asdict(changes)
        payload = {
            "project": project,
            "summary": changes.in_words(),
            "counts": {kind: len(names) for kind, names in kinds.items()},
            **{kind: names[:MOST_NAMES] for kind, names in kinds.items()},
        }
        resource = {"prefect.resource.id": project_resource(project), "prefect.resource.name": project}
        with use_api(url):
            emit_event(DATA_CHANGED, resource=resource, payload=payload)
        return url
    return None


def project_resource(project: str) -> str:
    """Return the id by which events name a project."""
    return f"raft.project.{project or 'pipeline'}"


def _send(config: PipelineConfig, subject: str, body: str) -> None:
    if not config.notify:
        return
    from prefect.blocks.core import Block

    for slug in config.notify:
        try:
            block = Block.load(slug)
            block.notify(body=body, subject=subject)  # type: ignore[union-attr]
        # Every service has errors of its own, and so has a block that does not exist.
        except Exception as error:
            logger.warning(
                "notify: %s: the message was not sent (%s)", slug, " ".join(str(error).split())[:200]
            )
