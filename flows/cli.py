"""Entry point of the `jora` command, with its exit status and its one-line errors."""

from __future__ import annotations

import sys

from flows.commands.app import app


def main() -> None:
    """Run the `jora` command and exit with its status.

    Wrong input prints one line and gives exit status 2. A failed stage prints the last lines of its output
    and gives exit status 1.
    """
    try:
        app()
    except ValueError as error:
        # The error types are imported where there is an error: `jora --help` loads none of our packages.
        from jora_core.base.errors import InputError

        # pydantic's ValidationError is a ValueError too. One that arrives here is a mistake in our code.
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
        # The reader of our output has ended, as in `jora plan | head -1`, which is no error. Without the
        # close, the interpreter would flush at its end and print the same error again.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
