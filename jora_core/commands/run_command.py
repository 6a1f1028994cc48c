"""Entry point of every command of the training core: spec, compilation cache and exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from pydantic import BaseModel

from jora_core.base.errors import InputError
from jora_core.base.spec_command import run_spec_command
from jora_core.parallel.devices import refuse_unusable_platform
from jora_core.parallel.program_cache import set_program_cache
from jora_core.specs.read_spec import read_spec

Spec = TypeVar("Spec", bound=BaseModel)


def run_command(
    model: type[Spec], function: Callable[[Spec], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run one command and end the process with its exit status (see `run_spec_command`).

    Args:
        model: the spec's class. If it has a `compilation_cache_dir`, compiled programs are kept there.
        function: does the work and returns the exit status; None is 0.
        argv: arguments without the program's name; those of the process if None.
    """

    def with_compilation_cache(spec: Spec) -> int | None:
        # Before the function: JAX opens its cache at the first compilation and then keeps the folder.
        set_program_cache(getattr(spec, "compilation_cache_dir", None))
        try:
            return function(spec)
        except InputError:
            raise
        except Exception:
            refuse_unusable_platform()
            raise

    # Run with -m, the command's module is __main__: the first line of its docstring is the help text.
    summary = (sys.modules[function.__module__].__doc__ or "").split("\n")[0]
    run_spec_command(lambda path: read_spec(path, model), with_compilation_cache, argv, description=summary)
