"""Build the records of a corpus: ``python -m flows.build_context --spec SPEC.json``, the child of `build-
context`.

A child, so that the embedder's libraries and the corpus leave the pipeline's memory when they are done, and
so that a crash inside them is one stage's failure. Exit codes as for the commands of the training core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from flows.errors import InputError, one_line_os_errors
from retrieval.config import ContextConfig
from retrieval.errors import InputError as RetrievalInputError


class BuildContextSpec(BaseModel):
    """What the child is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    output_dir: Path = Field(title="Output folder", description="Records, rankings, result.json")


def main(argv: list[str] | None = None) -> int:
    """Build the records that the spec orders; return the exit status."""
    parser = argparse.ArgumentParser(prog="flows.build_context", description="Build the records of a corpus")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with a BuildContextSpec")
    spec = BuildContextSpec.model_validate_json(parser.parse_args(argv).spec.read_text(encoding="utf-8"))
    try:
        with one_line_os_errors("write", spec.output_dir):
            _build(spec)
    except (InputError, RetrievalInputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _build(spec: BuildContextSpec) -> None:
    import resource

    from jora_core.progress import Progress
    from retrieval.build import build_context

    bars: dict[str, Progress] = {}

    def show(label: str, done: int, total: int) -> None:
        if total:
            bars.setdefault(label, Progress(label, total)).update(done)

    spec.output_dir.mkdir(parents=True, exist_ok=True)
    metrics = build_context(spec.context, spec.output_dir, show)
    # Settings and input digests stand in the manifest already.
    result = {name: metrics[name] for name in ("records", "tasks")}
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = json.dumps(result, indent=1, sort_keys=True)
    (spec.output_dir / "result.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
