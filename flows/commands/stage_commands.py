"""Commands of `jora` about one stage, or the phases of training: without Prefect, in this process."""

from __future__ import annotations

import logging
import sys

from flows.commands import print_pipeline
from flows.commands.common_options import Config, Force, Json, Only, Set, load, print_json, say
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.run_stage import run_stages
from flows.report.page import write_report
from flows.stages import STAGES
from jora_core.base.errors import InputError


def context(
    config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Build the records (stage build-context).

    Reads the corpora, retrieves, and writes training and held-out records; without Prefect. Prints how many,
    how good the retriever is and what was left out, and writes a report of it.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    references = _run_stages(["build-context"], settings, force, as_json)
    if not as_json and print_pipeline.print_records(references[0]):
        print(f"report: {write_report(Store(settings.store), settings, references, latest=False)}")


def convert(
    config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Check the base model (stage convert-model).

    Reads every tensor once and writes down what was read; without Prefect.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    _run_stages(["convert-model"], load(config, overrides), force, as_json)


def train(
    config: Config = None,
    only: Only = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune, in all phases or one.

    The stages finetune-structure and finetune-task, without Prefect; `jora context` and `jora convert` first.

    Args:
        config: configuration file.
        only: this stage alone.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    # Of the configuration: it may have one phase only.
    names: list[str] = [phase.stage for phase in settings.phases]
    if only is not None and only not in names:
        raise InputError(f"--only {only}: expected a phase of the configuration: {', '.join(names)}")
    _run_stages([only] if only else names, settings, force, as_json)


def evaluate(
    config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Score held-out records (stage evaluate).

    The base model, the model after each phase, and baselines without a model; without Prefect.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    _run_stages(["evaluate"], load(config, overrides), force, as_json)


def export(config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False) -> None:
    """Write model and adapter (stage export).

    A merged Hugging Face model, the PEFT adapter and a model card with the lineage; without Prefect.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    _run_stages(["export"], load(config, overrides), force, as_json)


def _run_stages(names: list[str], config: PipelineConfig, force: bool, as_json: bool) -> list[ArtifactRef]:
    """Run stages one after the other in this process, and print what they left; return their artifacts."""
    _log_to_stderr()
    references = run_stages(
        names,
        config,
        Store(config.store),
        STAGES,
        force=force,
        on_stage=lambda name, line: say(f"{name}: {line}"),
        on_done=None if as_json else print_pipeline.print_reference,
    )
    if as_json:
        print_json(print_pipeline.outcome_as_json(references, None))
    else:
        print_pipeline.print_results(references)
    return references


def _log_to_stderr() -> None:
    """Show the lines of child processes where no terminal shows their progress bars."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Our own lines from INFO on, other libraries' from WARNING on.
    logging.getLogger("jora").setLevel(logging.INFO)
