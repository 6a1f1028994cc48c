"""Build the records of a corpus: ``python -m flows.children.build_records --spec SPEC.json``.

The stage `build-context` starts this module as a child process. The child's end frees the memory of the
embedder and the corpus, and a crash of their libraries fails only this stage. The child does the whole build,
or one step of it for :mod:`flows.orchestration.tasks.records_flow`. The exit status is that of the commands
of the training core.
"""

from __future__ import annotations

import json
from typing import Any

from flows.children.build_records_spec import BuildContextSpec
from flows.engine.errors import one_line_os_errors
from jora_core.base.progress import ProgressBars
from jora_core.base.spec_command import peak_process_bytes, run_spec_command
from jora_core.specs.read_spec import read_spec
from retrieval.build.build import build_record_files, merge_prepared
from retrieval.build.shards import build_numbered, prepare


def _all(spec: BuildContextSpec) -> dict[str, Any]:
    with ProgressBars() as bars:
        return _facts(build_record_files(spec.context, spec.records_dir, bars.show, spec.work_dir))


def _prepare(spec: BuildContextSpec) -> dict[str, Any]:
    with ProgressBars() as bars:
        prepared = prepare(spec.context, spec.work_dir, bars.show)
    return {"shards": [f"{s.task} {s.low}-{s.high}" for s in prepared.shards]}


def _shard(spec: BuildContextSpec) -> dict[str, Any]:
    return {"examples": build_numbered(spec.context, spec.work_dir, spec.shard)}


def _merge(spec: BuildContextSpec) -> dict[str, Any]:
    return _facts(merge_prepared(spec.context, spec.work_dir, spec.records_dir))


def _facts(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics for the manifest, without examples, settings and the digests of inputs."""
    tasks = {
        name: {key: value for key, value in task.items() if key != "examples"}
        for name, task in metrics["tasks"].items()
    }
    return {"records": metrics["records"], "tasks": tasks, "digests": metrics["digests"]}


def main(spec: BuildContextSpec) -> None:
    """Run the step that the spec names, and write its metrics to `result.json`."""
    # The parent shows one `error:` line for exit status 2. A full disk must not look like a crash.
    with one_line_os_errors("write", spec.records_dir):
        result = _STEPS[spec.step](spec) | {"peak_memory_bytes": peak_process_bytes()}
        # Sorted, so that two builds can be compared as text.
        text = json.dumps(result, indent=1, sort_keys=True)
        (spec.output_dir / "result.json").write_text(text, encoding="utf-8")


_STEPS = {"all": _all, "prepare": _prepare, "shard": _shard, "merge": _merge}

if __name__ == "__main__":
    run_spec_command(
        lambda path: read_spec(path, BuildContextSpec), main, description="Build the records of a corpus."
    )
