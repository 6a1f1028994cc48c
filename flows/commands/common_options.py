"""Code that the commands of `jora` share: options, loading of a configuration, and printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from flows.children.devices import require_devices
from flows.configuration.load import load_config
from flows.configuration.requirements import require
from flows.configuration.sample import CONFIG_NAME, SAMPLE_CONFIG, default_config
from flows.configuration.schema import PipelineConfig
from jora_core.base.errors import InputError

# Types of parameters, so that an option has one name, one help text and one meaning in all commands.
Config = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", help="YAML file; without it, ./jora.yaml, else a checkout's sample."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one value of CONFIG (YAML); repeatable."),
]
Only = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="This stage alone.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="This stage and those after it.")]
Force = Annotated[bool, typer.Option("--force", help="Run even what is up to date.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def load(path: Path | None, overrides: list[str] | None, ready: bool = False) -> PipelineConfig:
    """Load and check the configuration of a command; without a path, load the default configuration.

    Args:
        path: YAML file; None takes the default configuration.
        overrides: changes of single values.
        ready: whether to refuse also what a run of the pipeline would refuse later, such as a missing package
            or a mesh that the model cannot be split over. Warnings are printed.

    Raises:
        InputError: the configuration is not valid, or not ready.
    """
    config = load_config(path, overrides or [])
    if ready:
        if path is None and default_config() == SAMPLE_CONFIG:
            print_status(f"no CONFIG and no ./{CONFIG_NAME}: the embedded sample, {SAMPLE_CONFIG}")
        keys = {text.partition("=")[0].strip() for text in overrides or []}
        for line in require(config, str(path or default_config()), keys):
            print_status(f"warning: {line}")
        require_devices(config.mesh.devices)
    return config


def print_status(line: str) -> None:
    """Print a line about the progress of a command on stderr."""
    # Not on stdout, which may be piped into a program. Flushed, because a child writes to the same stream.
    print(line, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Print a result as JSON on stdout, for another program."""
    # Text of any language stays readable.
    print(json.dumps(value, indent=2, ensure_ascii=False))


def require_utf8(texts: Mapping[str, object]) -> None:
    """Refuse texts and paths of the command line that are not UTF-8, such as words in Latin-1.

    Python keeps their bytes as halves of surrogate pairs, which no file in JSON may hold.

    Args:
        texts: the values by the name of their option; None is left out.

    Raises:
        InputError: a value is not UTF-8.
    """
    for name, value in texts.items():
        try:
            str(value).encode()
        except UnicodeEncodeError:
            advice = "rename what it names" if isinstance(value, Path) else "write it as UTF-8"
            raise InputError(f"{name} {str(value)!a:.80}: is not UTF-8; {advice}") from None


def read_stdin() -> str:
    """Return the text of standard input.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error.reason}") from None
