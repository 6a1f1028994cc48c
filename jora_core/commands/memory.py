"""Plan the memory of a training step: ``python -m jora_core.commands.memory --spec SPEC.json``."""

from __future__ import annotations

import sys

from jora_core.base.atomic_files import write_json
from jora_core.commands.run_command import run_command
from jora_core.planning.memory_plan import plan_memory
from jora_core.specs.planning import MemorySpec


def main(spec: MemorySpec) -> None:
    """Write the memory plan to ``result.json``, and progress to standard error."""
    plan = plan_memory(spec, lambda line: print(line, file=sys.stderr, flush=True))
    write_json(spec.output_dir / "result.json", plan)


if __name__ == "__main__":
    run_command(MemorySpec, main)
