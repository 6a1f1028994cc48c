"""The commands of `jora` that run the pipeline (run) or single stages (context to push)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import print_pipeline
from flows.commands.common_options import Config, Force, From, Json, Only, Set, load, print_json, print_status
from flows.commands.models.convert_file import convert_file, is_source
from flows.commands.prompts.export_task import choice_parts, export_tasks
from flows.commands.prompts.records_as_messages import check_target, write_messages
from flows.commands.stage_runs import run_stages_here
from flows.engine.keys import identify
from flows.engine.plan import missing_upstream
from flows.engine.shared.shared_store import open_store
from flows.orchestration import run_pipeline
from flows.report.page import write_report
from flows.stages import STAGES
from flows.stages.build_context import RECORDS
from flows.stages.evaluate import LINKS
from flows.stages.push import EXPORT, NAME, uploads
from jora_core.base.errors import InputError
from retrieval.text.labels import plural


def run(
    *,
    config: Config = None,
    only: Only = None,
    start: From = None,
    force: Force = False,
    overrides: Set = None,
    ignore_gates: Annotated[bool, typer.Option("--ignore-gates")] = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline, or a part of it.

    Finished stages are taken from the store. A killed stage continues from its last checkpoint. Uses the
    Prefect server that PREFECT_API_URL names or that `jora serve` has started. Otherwise the run has a server
    of its own.

    Args:
        config: configuration file.
        only: this stage alone.
        start: this stage and those after it.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        ignore_gates: Export even if the evaluation does not meet `gates`; the lineage says so.
        as_json: print JSON instead of text.
    """
    changes = [*(overrides or []), *(["ignore_gates=true"] if ignore_gates else [])]
    settings = load(config, changes, ready=True)
    with _says_how_to_go_on():
        outcome = run_pipeline.run(settings, only=only, start=start, force=force, say=print_status)
    if as_json:
        print_json(print_pipeline.outcome_as_json(outcome.references, outcome.report))
    else:
        print_pipeline.print_outcome(outcome.references, outcome.report)


@contextmanager
def _says_how_to_go_on() -> Iterator[None]:
    """Say after SIGTERM and Ctrl-C what is kept; end with the shell's status for the signal."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    # While a flow runs, Prefect handles the signal: it ends the run, then sends the signal to this handler.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print_status("the same command goes on from here: finished stages and checkpoints are kept")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def context(
    config: Config = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
    preview: Annotated[str | None, typer.Option("--preview", metavar="FILE")] = None,
    messages: Annotated[Path | None, typer.Option("--messages", metavar="FILE")] = None,
) -> None:
    """Build the records (stage build-context).

    Reads the corpora, retrieves, and writes training and held-out records, without Prefect. Prints the number
    of records, the quality of the retriever and what was left out, and writes a report about it.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
        preview: Build nothing; print the first rows of a corpus as they are read, and what to configure.
        messages: Also write the records in the chat format, for other tools: a .jsonl or .parquet file.
    """
    if preview is not None:
        # Here, because no other command reads a corpus in this process.
        from retrieval.readers.preview import preview as lines_of

        print("\n".join(lines_of(preview)))
        return
    settings = load(config, overrides)
    if messages is not None:
        check_target(messages)
    references = run_stages_here(["build-context"], settings, force, as_json)
    if messages is not None:
        path = Path(references[0].path) / RECORDS
        print_status(f"{messages}: {write_messages(path, messages, settings.prompt.system)} conversations")
    if not as_json and print_pipeline.print_records(references[0]):
        print(f"report: {write_report(open_store(settings), settings, references, latest=False)}")


def convert(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG|MODEL", help="YAML file, or a model to convert.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="New model folder; only with MODEL.")
    ] = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Check or convert the base model (stage convert-model).

    With CONFIG, reads every tensor once and writes a description of the model (model.json), without Prefect.
    A GGUF file, or a folder in Meta's layout, becomes a model folder in Hugging Face layout. With MODEL and
    DIR, converts such a model alone.

    \b
    Examples:
      jora convert                            the model of ./jora.yaml
      jora convert model.Q8_0.gguf my-model   a model folder from a GGUF file
      jora convert Llama-3.1-8B my-model      the same from params.json and consolidated.*.pth

    Args:
        config: configuration file, or the model.
        folder: new model folder.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    if folder is None and not is_source(config):
        run_stages_here(["convert-model"], load(config, overrides), force, as_json)
        return
    if config is None or folder is None:
        raise InputError(f"give the new folder too: `jora convert {config} DIR`")
    if force or overrides:
        raise InputError("--force and --set change a configuration; a model is converted without one")
    result = convert_file(config, folder)
    if as_json:
        print_json(result | {"folder": str(folder)})
    else:
        print(f"{folder}: {result['parameters'] / 1e6:,.1f}M parameters, {result['bytes'] / 1e6:,.0f} MB")


def train(
    config: Config = None,
    only: Only = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune, in all phases or one.

    Runs the stages finetune-structure and finetune-task, without Prefect. `jora context` and `jora convert`
    must run before.

    Args:
        config: configuration file.
        only: this stage alone.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    # The phases of the configuration, which may have only one.
    names: list[str] = [phase.stage for phase in settings.phases]
    if only is not None and only not in names:
        raise InputError(f"--only {only}: expected a phase of the configuration: {', '.join(names)}")
    run_stages_here([only] if only else names, settings, force, as_json)


def evaluate(
    config: Config = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
    links: Annotated[Path | None, typer.Option("--write-links", metavar="DIR")] = None,
    task: Annotated[Path | None, typer.Option("--export-task", metavar="DIR")] = None,
) -> None:
    """Score held-out records (stage evaluate).

    Scores the base model, the model after each phase, and baselines without a model. Runs without Prefect.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
        links: Also write the reply links of each system, as annotations of irc-disentanglement, below DIR.
        task: Also write the scored choices as a task of lm-eval to DIR.
    """
    settings = load(config, overrides)
    if links is not None and (settings.context.threads is None or settings.evaluate.max_records == 0):
        raise InputError("--write-links: this configuration scores no threads; give context.threads")
    if task is not None:
        choice_parts(settings)
    references = run_stages_here(["evaluate"], settings, force, as_json)
    if links is not None:
        # Here, because it loads numpy, which the other commands of this module do not need.
        from retrieval.evaluation.threads.annotation_files import write_annotations

        path = Path(references[0].path) / LINKS
        print_status(f"{links}: {plural(write_annotations(path, links), 'file')}")
    if task is not None:
        for line in export_tasks(settings, references[0], open_store(settings), task):
            print_status(line)


def export(config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False) -> None:
    """Write model and adapter (stage export).

    Writes a merged Hugging Face model, the PEFT adapter and a model card with the lineage, without Prefect.

    Args:
        config: configuration file.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    run_stages_here(["export"], load(config, overrides), force, as_json)


def push(
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded, and upload nothing.")
    ] = False,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Upload the export to the hub (stage push).

    Uploads model, adapter, GGUF file and model card to the repository export.push_to of the Hugging Face hub,
    in one commit and without Prefect. HF_TOKEN must have a token that may write there. A repository that does
    not exist is made, and is private.

    \b
    Examples:
      jora push --set export.push_to=me/my-model --dry-run
      HF_TOKEN=... jora push --set export.push_to=me/my-model

    Args:
        config: configuration file.
        dry_run: list what would be uploaded, and upload nothing.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    target = settings.export.push_to
    if target is None:
        raise InputError(
            "export.push_to: there is none; give OWNER/NAME, such as --set export.push_to=me/model"
        )
    if not dry_run:
        run_stages_here([NAME], settings, force, as_json)
        return
    store = open_store(settings)
    identity = identify(settings, STAGES, until=EXPORT)[EXPORT]
    store.fetch(EXPORT, identity.key)
    check = store.check(EXPORT, identity.key)
    if not check.whole:
        raise missing_upstream("push", identity, {EXPORT: check}, settings, store)
    found = uploads(store.path(EXPORT, identity.key), target)
    if as_json:
        print_json({"repository": target, "files": {each.name: each.size for each in found}})
        return
    print("\n".join(map(str, found)))
    size = sum(each.size for each in found) / 1e6
    print(f"{target}: {len(found)} files, {size:,.1f} MB would be uploaded; nothing was")
