"""Entry point of the `jora` command: its exit status, and errors as one line."""

from __future__ import annotations

import sys

from flows.commands.app import app


def main() -> None:
    """Run the command; wrong input is one line and exit status 2, a failed stage its last lines and 1."""
    try:
        app()
    except ValueError as error:
        # The error types are imported where there is an error: `jora --help` loads none of our packages.
        from jora_core.base.errors import InputError

        # pydantic's ValidationError is a ValueError too, and here it would be a mistake of ours.
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
        # The reader of our output has ended, as in `jora plan | head -1`: no error of ours. Without the
        # close, the interpreter would flush at its end and print the same error again.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
