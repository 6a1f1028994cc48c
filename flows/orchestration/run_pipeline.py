"""What `jora run` does: answer from the store where everything is current, else run the flow.

Starting a Prefect server takes seconds (a fresh database up to 18), verifying artifacts does not. So a run
that has nothing to do says so without a server and leaves no flow run behind; anything that runs goes
through :mod:`flows.orchestration.pipeline_flow`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.plan import make_plan
from flows.orchestration.prefect_server import prefect_api, prepare_environment
from flows.orchestration.references import pipeline_references, report_of, verified_reference
from flows.stages import STAGES
from jora_core.base.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """What a run left: a reference for each selected stage, and the report's path where there is one."""

    references: list[ArtifactRef]
    report: Path | None


def run(
    config: PipelineConfig,
    *,
    only: str | None = None,
    start: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Run the selected stages of a pipeline, by default all of them.

    Args:
        config: what to run on what.
        only: this stage alone.
        start: this stage and those after it.
        force: run the selected stages even where their artifacts are current.
        say: gets the lines for the person.

    Raises:
        InputError: wrong input, of the pipeline or of a stage.
        StageFailed: a stage cannot be finished, or no Prefect server could be started. Other errors of a
            stage pass unchanged.
    """
    begun = time.monotonic()
    store = Store(config.store)
    plan = make_plan(config, store, STAGES, only=only, start=start, force=force)
    # The plan verified every byte, so this is no shortcut around the checks of the flow.
    if all(stage.action == "cached" for stage in plan):
        references = [verified_reference(stage.name, stage.key, store) for stage in plan]
        say(f"nothing to run: {len(plan)} stages verified in {time.monotonic() - begun:.1f} s")
        return Outcome(references, report_of(config, store, pipeline_references(config, store, references)))
    prepare_environment()
    with prefect_api(say):
        # After the address of the server is set, and only where a flow runs: the import of Prefect is
        # slow.
        from flows.orchestration import pipeline_flow

        with _refusals_without_traceback():
            stage = cast("pipeline_flow.StageName | None", only)
            from_stage = cast("pipeline_flow.StageName | None", start)
            result = pipeline_flow.raft_pipeline(
                only=stage, from_stage=from_stage, force=force, config=config
            )
    references = [ArtifactRef.model_validate(item) for item in result["stages"]]
    return Outcome(references, Path(result["report"]) if result["report"] else None)


@contextmanager
def _refusals_without_traceback() -> Iterator[None]:
    """Keep Prefect's report of a wrong input off the console: the caller prints its one line."""

    def passes(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            return not isinstance(error, InputError)
        # "Finished in state Failed('Task run encountered an exception InputError: …')"
        return not (
            "Finished in state Failed(" in record.getMessage() and "InputError: " in record.getMessage()
        )

    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    setup_logging()  # before the first flow run does, which would put new handlers in place
    # Prefect sets console handlers on several loggers.
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    consoles = {
        handler for one in loggers for handler in one.handlers if isinstance(handler, PrefectConsoleHandler)
    }
    for console in consoles:
        console.addFilter(passes)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(passes)
