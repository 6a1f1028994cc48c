"""The work of `jora run`: verify the artifacts, and run the Prefect flow if one of them is not current.

A Prefect server needs seconds to start (up to 18 s with a fresh database), and the verification of artifacts
is faster. So a run without work needs no server and no flow run. All other runs use
:mod:`flows.orchestration.pipeline_flow`.
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
from flows.engine.artifact_store import ArtifactRef
from flows.engine.errors import GateFailed
from flows.engine.plan import make_plan
from flows.engine.run_records import recorded_run
from flows.engine.shared.shared_store import open_store
from flows.housekeeping.disk_space import require_space
from flows.orchestration.prefect_server import prefect_api, prepare_environment
from flows.orchestration.references import pipeline_references, report_of, verified_reference
from flows.stages import STAGES
from jora_core.base.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """The result of a run: references of the selected stages, and the path of the report, if any."""

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
        config: configuration of the pipeline.
        only: name of the only stage to run.
        start: name of the first stage to run.
        force: run the selected stages even where their artifacts are current.
        say: called with each line for the user.

    Raises:
        InputError: the input of the pipeline or of a stage is wrong.
        StageFailed: a stage cannot finish, or no Prefect server can be started. Other errors of a stage stay
            unchanged.
    """
    begun = time.monotonic()
    store = open_store(config)
    plan = make_plan(config, store, STAGES, only=only, start=start, force=force, fetch=True)
    # The plan has verified every byte, so no check of the flow is skipped.
    if all(stage.action == "cached" for stage in plan):
        references = [verified_reference(stage.name, stage.key, store) for stage in plan]
        with recorded_run(store, config, {}) as record:
            for reference in references:
                record.finished(reference)
        say(f"nothing to run: {len(plan)} stages verified in {time.monotonic() - begun:.1f} s")
        return Outcome(references, report_of(config, store, pipeline_references(config, store, references)))
    require_space(config, store, [line.name for line in plan if line.action == "run"])
    prepare_environment()
    with prefect_api(say):
        # Imported after the address of the server is set, and only if a flow runs: the import of Prefect is
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
    """Hide Prefect's log records of a wrong input or a failed gate; the caller prints the error itself."""
    hidden = (InputError, GateFailed)

    def passes(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            return not isinstance(error, hidden)
        # "Finished in state Failed('Task run encountered an exception InputError: …')"
        text = record.getMessage()
        return not (
            "Finished in state Failed(" in text and any(f"{kind.__name__}: " in text for kind in hidden)
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
