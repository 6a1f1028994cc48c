"""What the commands of `jora` share: the application, its common options, reading a configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flows.configuration.schema import PipelineConfig

EXAMPLES = """
\b
Examples:
  jora init demo --sample                      a project that runs at once; without --sample, for your data
  jora doctor                                  is this machine ready?
  jora plan                                    what would run, and why
  jora run                                     ./jora.yaml, from corpus to exported model
  jora run my.yaml                             another configuration
  jora run my.yaml --set phases.finetune-task.max_steps=500
  jora run my.yaml --from finetune-task        this stage and those after it
  jora run my.yaml --only evaluate --force     one stage, even if nothing changed
  jora serve my.yaml                           web UI, schedule, runs through the API
  jora memory my.yaml --card 80                bytes per device, before there is one

\b
Exit status: 0 done, 1 failed, 2 wrong input. Every command explains itself: jora COMMAND --help
"""

DISTRIBUTION = "jora-raft"  # the name of the installed package

app = typer.Typer(
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    # pyproject.toml is the only place that has the number; the installation knows it from there.
    print(f"jora {version(DISTRIBUTION)}")
    raise typer.Exit


@app.callback()
def jora(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Retrieval-augmented fine-tuning, from a raw corpus to an exported model."""


Config = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="YAML file; without it, ./jora.yaml, else a checkout's sample."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one value of CONFIG (YAML); repeatable."),
]
Only = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="This stage alone.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="This stage and those after it.")]
Force = Annotated[bool, typer.Option("--force", help="Run even what is up to date.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def load(path: Path | None, overrides: list[str] | None) -> PipelineConfig:
    """The checked configuration of a command; the embedded sample's without a path."""
    from flows.configuration.load import load_config

    return load_config(path, overrides or [])


def say(line: str) -> None:
    """A line for the person, on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """A result for a program, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
