"""The `jora` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import sys

# Importing the commands registers them, in the order of the help: `split` keeps the sorter from changing it.
from flows.commands import project  # noqa: F401

# isort: split
from flows.commands import pipeline  # noqa: F401

# isort: split
from flows.commands import model  # noqa: F401
from flows.commands.app import app


def main() -> None:
    """Run the command; wrong input is one line and exit status 2, a failed stage its last lines and 1."""
    try:
        app()
    except ValueError as error:
        from jora_core.base.errors import InputError

        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        from flows.children.run_child import ChildError
        from flows.engine.errors import StageFailed

        if not isinstance(error, (ChildError, StageFailed)):
            raise
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output has ended, as in `jora plan | head -1`: no error of ours.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
