"""Code that the commands of `jora` share: options, loading of a configuration, and printing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig

# Types of parameters, so that an option has one name, one help text and one meaning in all commands.
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
    """Load and check the configuration of a command; without a path, load the default configuration."""
    return load_config(path, overrides or [])


def print_status(line: str) -> None:
    """Print a line about the progress of a command on stderr."""
    # Not on stdout, which may be piped into a program. Flushed, because a child writes to the same stream.
    print(line, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Print a result as JSON on stdout, for another program."""
    # Text of any language stays readable.
    print(json.dumps(value, indent=2, ensure_ascii=False))
