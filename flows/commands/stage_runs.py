"""Run stages in the process of a command, without Prefect, and print what they made."""

from __future__ import annotations

import logging
import sys

from flows.children.run_child import limit_silence
from flows.commands import print_pipeline
from flows.commands.common_options import print_json, print_status
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef
from flows.engine.run_stage import run_stages
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES


def run_stages_here(
    names: list[str], config: PipelineConfig, force: bool, as_json: bool
) -> list[ArtifactRef]:
    """Run stages one after the other in this process; print and return their artifacts.

    Args:
        names: names of the stages.
        config: the configuration.
        force: run even what is up to date.
        as_json: print JSON instead of text.
    """
    log_to_stderr()
    limit_silence(config.retries.no_progress_seconds)
    references = run_stages(
        names,
        config,
        open_store(config),
        STAGES,
        force=force,
        on_stage=lambda name, line: print_status(f"{name}: {line}"),
        on_done=None if as_json else print_pipeline.print_reference,
    )
    if as_json:
        print_json(print_pipeline.outcome_as_json(references, None))
    else:
        print_pipeline.print_results(references)
    return references


def log_to_stderr() -> None:
    """Show log lines on stderr, such as the output of child processes if stderr is no terminal."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Our own lines from INFO on, other libraries' from WARNING on.
    logging.getLogger("jora").setLevel(logging.INFO)
