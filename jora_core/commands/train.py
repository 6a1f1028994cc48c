"""Train an adapter, or a whole model: ``python -m jora_core.commands.train --spec SPEC.json``."""

from __future__ import annotations

import sys

from jora_core.commands.run_command import run_command
from jora_core.parallel.processes import ending_with_peers
from jora_core.specs.train import TrainSpec
from jora_core.training.loop import DivergedError
from jora_core.training.train import train


def main(spec: TrainSpec) -> int:
    """Train and return the exit status: 0 done, 1 diverged loss, 143 stopped by SIGTERM with saved state.

    Where another process of the mesh is lost, this one ends with status 1 too.
    """
    try:
        with ending_with_peers():
            train(spec)
    except DivergedError as err:
        # Not an InputError (exit status 2): the input is valid, and a lower learning rate may help.
        print(f"error: {err}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    run_command(TrainSpec, main)
