"""Build the records of a corpus: ``python -m flows.children.build_records --spec SPEC.json``, the child of
`build- context`.

A child, so that the embedder's libraries and the corpus leave the pipeline's memory when they are done, and
so that a crash inside them is one stage's failure. It does all of it, or one step for
:mod:`flows.orchestration.records_flow`. Exit codes as for the commands of the training core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.engine.errors import one_line_os_errors
from jora_core.base.errors import InputError
from jora_core.base.errors import InputError as RetrievalInputError
from retrieval.settings.context import ContextConfig

Step = Literal["all", "prepare", "shard", "merge"]


class BuildContextSpec(BaseModel):
    """What the child is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: ContextConfig = Field(title="Context", description="Corpora, retrieval and records")
    step: Step = Field(default="all", title="Step", description="All of the build, or one step of it")
    shard: int = Field(default=0, ge=0, title="Shard", description="Number of the shard, for that step")
    work_dir: Path = Field(title="Work folder", description="What the steps share and a killed build finds")
    records_dir: Path = Field(title="Records folder", description="Records, rankings and metrics go there")
    output_dir: Path = Field(title="Output folder", description="result.json")


def main(argv: list[str] | None = None) -> int:
    """Do what the spec orders; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="flows.children.build_records", description="Build the records of a corpus"
    )
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with a BuildContextSpec")
    spec = BuildContextSpec.model_validate_json(parser.parse_args(argv).spec.read_text(encoding="utf-8"))
    try:
        with one_line_os_errors("write", spec.records_dir):
            _write_result(spec, _STEPS[spec.step](spec))
    except (InputError, RetrievalInputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _all(spec: BuildContextSpec) -> dict[str, Any]:
    from flows.children.progress_bars import Bars
    from retrieval.build.build import build_context

    with Bars() as bars:
        return _facts(build_context(spec.context, spec.records_dir, bars.show, spec.work_dir))


def _prepare(spec: BuildContextSpec) -> dict[str, Any]:
    from flows.children.progress_bars import Bars
    from retrieval.build.shards import prepare

    with Bars() as bars:
        prepared = prepare(spec.context, spec.work_dir, bars.show)
    return {"shards": [f"{s.task} {s.low}-{s.high}" for s in prepared.shards]}


def _shard(spec: BuildContextSpec) -> dict[str, Any]:
    from retrieval.build.shards import build_numbered

    return {"examples": build_numbered(spec.context, spec.work_dir, spec.shard)}


def _merge(spec: BuildContextSpec) -> dict[str, Any]:
    from retrieval.build.build import merge_prepared

    return _facts(merge_prepared(spec.context, spec.work_dir, spec.records_dir))


def _facts(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the manifest is to say; settings and digests stand there already, examples in metrics.json."""
    tasks = {
        name: {key: value for key, value in task.items() if key != "examples"}
        for name, task in metrics["tasks"].items()
    }
    return {"records": metrics["records"], "tasks": tasks}


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _write_result(spec: BuildContextSpec, result: dict[str, Any]) -> None:
    result["peak_memory_bytes"] = peak_memory_bytes()
    text = json.dumps(result, indent=1, sort_keys=True)
    spec.output_dir.mkdir(parents=True, exist_ok=True)
    (spec.output_dir / "result.json").write_text(text, encoding="utf-8")


_STEPS = {"all": _all, "prepare": _prepare, "shard": _shard, "merge": _merge}

if __name__ == "__main__":
    sys.exit(main())
