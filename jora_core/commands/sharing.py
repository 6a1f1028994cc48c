"""Count the token slots that shared contexts save: ``python -m jora_core.commands.sharing --spec FILE``."""

from __future__ import annotations

from jora_core.base.atomic_files import write_json
from jora_core.commands.run_command import run_command
from jora_core.planning.sharing_savings import count_sharing
from jora_core.specs.planning import SharingSpec


def main(spec: SharingSpec) -> None:
    """Write the counts as ``result.json``."""
    write_json(spec.output_dir / "result.json", count_sharing(spec))


if __name__ == "__main__":
    run_command(SharingSpec, main)
