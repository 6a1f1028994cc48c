"""The `jora` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import sys

# Importing the commands registers them, in the order of the help.
from flows import cli_pipeline, cli_tools  # noqa: F401
from flows.cli_app import app


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
