"""The launcher of child processes that need a device, for example Slurm's `srun`.

Two environment variables of the worker name it, as words of a shell. They belong to the machine and not to
the experiment, so they are no settings and change no key. `JORA_LAUNCHER` is put before the command of
training, prediction and export, and `JORA_TRAIN_LAUNCHER` before training alone. Specs, store and corpora
must have the same paths where the launcher runs the command. The exit status of the launcher must be that of
the command.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping

from jora_core.base.errors import InputError

# The other commands are short, or need the files of this machine only.
ON_DEVICE = frozenset({"train", "predict", "export"})


def launcher_variable(module: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the variable that holds the launcher of a command; None if the command runs on this machine."""
    if module not in ON_DEVICE:
        return None
    names = ("JORA_TRAIN_LAUNCHER", "JORA_LAUNCHER") if module == "train" else ("JORA_LAUNCHER",)
    return next((name for name in names if environment.get(name)), None)


def launch_command(module: str, command: list[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the command with the launcher of its module before it.

    Args:
        module: name of a command of the training core.
        command: program and arguments of the child process.
        environment: variables, of which JORA_LAUNCHER and JORA_TRAIN_LAUNCHER are read.

    Raises:
        InputError: the launcher is not a program, or a quote in it is not closed.
    """
    name = launcher_variable(module, environment)
    if name is None:
        return command
    try:
        words = shlex.split(environment[name])
    except ValueError as error:
        raise InputError(f"{name}: {environment[name]!r}: {error}; quote it as for a shell") from None
    if not words or not shutil.which(words[0], path=environment.get("PATH")):
        raise InputError(
            f"{name}: no program {' '.join(words[:1])!r}; name one in PATH, or with its whole path"
        )
    return [*words, *command]
