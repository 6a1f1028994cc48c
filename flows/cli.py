"""The `jora` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flows.config import PipelineConfig
    from flows.runner import ArtifactRef

EXAMPLES = """
\b
Examples:
  jora doctor                                  is this machine ready?
  jora plan                                    what would run, and why
  jora run                                     the embedded sample, from corpus to exported model
  jora run my.yaml                             your own data (start from a copy of flows/configs/sample.yaml)
  jora run my.yaml --set phases.finetune-task.max_steps=500
  jora run my.yaml --from finetune-task        this stage and those after it
  jora run my.yaml --only evaluate --force     one stage, even if nothing changed
  jora serve my.yaml                           web UI, schedule, runs through the API

\b
Exit status: 0 done, 1 failed, 2 wrong input. Every command explains itself: jora COMMAND --help
"""

app = typer.Typer(
    help="Retrieval-augmented fine-tuning, from a raw corpus to an exported model.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Config = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file; without it, the embedded sample.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one value of CONFIG (YAML); repeatable."),
]
Only = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="This stage alone.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="This stage and those after it.")]
Force = Annotated[bool, typer.Option("--force", help="Run even what is up to date.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
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
    """
    from flows import show
    from flows.run import run as run_flow

    settings = _load(config, overrides)
    outcome = run_flow(settings, only, start, force, _say)
    if as_json:
        _print_json(show.outcome_as_json(outcome.references, outcome.report))
    else:
        show.print_outcome(outcome.references, outcome.report)


@app.command()
def plan(
    config: Config = None,
    only: Only = None,
    start: From = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say per stage whether it would run, and why. Runs nothing, writes nothing."""
    from dataclasses import asdict

    from flows import show
    from flows.plan import make_plan
    from flows.store import Store

    settings = _load(config, overrides)
    lines = make_plan(settings, Store(settings.store), only, start, force)
    if as_json:
        _print_json({"stages": [asdict(line) for line in lines]})
    else:
        show.print_plan(lines)


@app.command()
def serve(
    config: Config = None,
    overrides: Set = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, help="Of the server on this machine; else PREFECT_API_URL, 4200."
        ),
    ] = None,
) -> None:
    """Start web UI, deployments and worker.

    Uses the server that answers, else starts one; prints its URL; Ctrl-C ends it. The pipeline and every
    stage get a deployment; `schedule.cron` of CONFIG starts the pipeline by itself.
    """
    from flows.serve import serve as serve_forever

    serve_forever(_load(config, overrides), port, _say)


@app.command()
def context(
    config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Build the records (stage build-context).

    Reads the corpora, retrieves, and writes training and held-out records; without Prefect.
    """
    _run_stages(["build-context"], _load(config, overrides), force, as_json)


@app.command()
def convert(
    config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Check the base model (stage convert-model).

    Reads every tensor once and writes down what was read; without Prefect.
    """
    _run_stages(["convert-model"], _load(config, overrides), force, as_json)


@app.command()
def train(
    config: Config = None,
    only: Only = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune, in all phases or one.

    The stages finetune-structure and finetune-task, without Prefect; `jora context` and `jora convert` first.
    """
    settings = _load(config, overrides)
    names: list[str] = [phase.stage for phase in settings.phases]
    if only is not None and only not in names:
        from flows.errors import InputError

        raise InputError(f"--only {only}: expected a phase of the configuration: {', '.join(names)}")
    _run_stages([only] if only else names, settings, force, as_json)


@app.command()
def evaluate(
    config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False
) -> None:
    """Score held-out records (stage evaluate).

    The base model, the model after each phase, and baselines without a model; without Prefect.
    """
    _run_stages(["evaluate"], _load(config, overrides), force, as_json)


@app.command()
def export(config: Config = None, force: Force = False, overrides: Set = None, as_json: Json = False) -> None:
    """Write model and adapter (stage export).

    A merged Hugging Face model, the PEFT adapter and a model card with the lineage; without Prefect.
    """
    _run_stages(["export"], _load(config, overrides), force, as_json)


@app.command()
def generate(
    instruction: Annotated[str, typer.Option("--instruction", "-i", help="What to do.")],
    text: Annotated[
        str,
        typer.Option("--input", "-t", help="What to do it with, context first; `-` reads standard input."),
    ] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; else the sample.")] = None,
    overrides: Set = None,
    model: Annotated[Path | None, typer.Option("--model", help="Model folder instead of CONFIG's.")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="PEFT folder instead of the last phase's; only with --model."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
) -> None:
    """Answer one prompt.

    With the fine-tuned model of CONFIG, or with any model and adapter; greedily.

    \b
    Example:
      jora generate -i "Answer the question from the documents." -t - < prompt.txt
    """
    from flows.commands import generate_answer

    source = sys.stdin.read() if text == "-" else text
    print(generate_answer(_load(config, overrides), instruction, source, model, adapter, max_new_tokens))


@app.command()
def merge(
    huggingface_path: Annotated[Path, typer.Argument(help="Base model folder in Hugging Face layout.")],
    jax_path: Annotated[Path, typer.Argument(help="Adapter folder that training wrote (PEFT layout).")],
    save_path: Annotated[Path, typer.Argument(help="New folder of the merged model.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 or bfloat16; else as the base.")
    ] = None,
    then: Annotated[
        list[Path] | None,
        typer.Option("--then", metavar="ADAPTER", help="Another adapter, merged after it; repeatable."),
    ] = None,
) -> None:
    """Merge an adapter, or several in order, into its base model.

    The new folder is in Hugging Face layout; `transformers` loads it.
    """
    from flows.commands import merge_adapter

    print(merge_adapter(huggingface_path, jax_path, save_path, dtype, then or []))


@app.command()
def doctor(config: Config = None, overrides: Set = None, as_json: Json = False) -> None:
    """Check this machine.

    Python, packages, devices, Prefect server, disk, rights, and the inputs of CONFIG. Exit status 1 if
    something is missing that a run needs.
    """
    from dataclasses import asdict

    from flows import show
    from flows.doctor import examine

    findings = examine(config, overrides or [])
    if as_json:
        _print_json({"checks": [asdict(finding) for finding in findings]})
    else:
        show.print_findings(findings)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _load(path: Path | None, overrides: list[str] | None) -> PipelineConfig:
    from flows.config import load_config

    return load_config(path, overrides or [])


def _run_stages(names: list[str], config: PipelineConfig, force: bool, as_json: bool) -> None:
    """Run stages one after the other in this process, and print what they left."""
    from flows import show
    from flows.runner import execute_stage
    from flows.store import Store

    _log_to_stderr()
    store = Store(config.store)
    store.sweep()
    references: list[ArtifactRef] = []
    for name in names:
        references.append(
            execute_stage(
                name, config, store, force, on_start=lambda line, name=name: _say(f"{name}: {line}")
            )
        )
        if not as_json:
            show.print_reference(references[-1])
    if as_json:
        _print_json(show.outcome_as_json(references, None))
    else:
        show.print_results(references)


def _log_to_stderr() -> None:
    """Show the lines of child processes where no terminal shows their progress bars."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("jora").setLevel(logging.INFO)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command; wrong input is one line and exit status 2, a failed stage its last lines and 1."""
    try:
        app()
    except ValueError as error:
        from flows.errors import is_input_error

        if not is_input_error(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        from flows.child import ChildError
        from flows.errors import StageFailed

        if not isinstance(error, (ChildError, StageFailed)):
            raise
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (`| head`) has had enough.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
