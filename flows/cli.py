"""Entry point of the `jora` command, with its exit status and its one-line errors."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Any, NoReturn

import typer

from flows.commands.app import app

INTERRUPTED = 130  # the shell's status of a command that Ctrl-C has ended
# The base class of wrong usage. Typer gives it no public name, and may use Click or a copy of Click.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]


def main() -> NoReturn:
    """Run the `jora` command and exit with its status.

    Wrong input prints one line and gives exit status 2. A failed stage prints the last lines of its output
    and gives exit status 1. Ctrl-C prints one line and gives 130.
    """
    # Most objects of the imports live to the end. Python's default of 700 would search them for cycles again
    # and again, which takes a tenth of the start.
    gc.set_threshold(50_000)
    # pydantic would read the entry points of every installed package for its plugins, and ours uses none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be UTF-8, and must not end a command that prints it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run()
        # Now, because the interpreter's own flush at the end would print a traceback.
        sys.stdout.flush()
        # The search for cycles at the interpreter's end would find nothing that matters.
        gc.freeze()
    except BrokenPipeError:
        # The reader of our output has ended, as in `jora plan | head -1`, which is no error.
        _drop_output()
        sys.exit(0)
    except OSError as error:
        # Of a file, the error has a name. Without a name it is our output, on a full disk.
        if error.filename is not None:
            raise
        _drop_output()
        print(f"failed: cannot write the output: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status)


def _run() -> int:
    """Run the command; return its exit status."""
    try:
        # Not standalone: Typer would print several lines for wrong usage.
        status = app(standalone_mode=False, prog_name="jora") or 0
    except SystemExit as error:
        # Typer turns a broken pipe into exit status 1.
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    except ClickException as error:
        return _wrong_usage(error)
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except ValueError as error:
        # The error types are imported where there is an error: `jora --help` loads none of our packages.
        from jora_core.base.errors import InputError

        # pydantic's ValidationError is a ValueError too. One that arrives here is a mistake in our code.
        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from flows.children.run_child import ChildError
        from flows.engine.errors import StageFailed

        if not isinstance(error, (ChildError, StageFailed)):
            raise
        print(f"failed: {error}", file=sys.stderr)
        return 1
    # Typer returns this status for a KeyboardInterrupt.
    if status == INTERRUPTED:
        print("stopped", file=sys.stderr)
    return status


def _wrong_usage(error: Any) -> int:
    """Print one line about wrong usage, or the help where no argument is given; return the exit status."""
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "jora"
        print(f"error: {' '.join(text.split()).rstrip('.')}; see `{command} --help`", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Send what is left in the buffers to nowhere, because the interpreter would write it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
