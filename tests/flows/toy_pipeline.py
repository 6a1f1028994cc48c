"""A pipeline of four quick stages under the real names, for tests of what surrounds the stages.

A stage notes each of its runs in `log.txt` beside the configuration's corpus and does what a file there
named after it says: `fail` (raise, once), `refuse` (wrong input), `hang` (start a child process that never
ends), `meet STAGE` (wait until that stage runs too), `linger SECONDS TEXT` (or less, if `network.txt` holds
the text), `edit-corpus`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.children.run_child import run_child
from flows.configuration.schema import PipelineConfig
from flows.engine.stage import Stage, StageContext, Upstream
from jora_core.base.errors import InputError


class ToySpec(BaseModel):
    """What the toy child is asked to do."""

    output_dir: Path
    act: str


def toy_config(folder: Path, **changes: Any) -> PipelineConfig:
    """A configuration whose corpus and store lie in `folder`; both are made if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        corpus.write_text("a corpus\n")
    raw = {
        "root": str(folder),
        "store": str(folder / "store"),
        "model": {"path": str(folder / "model")},
        "context": {"threads": {"source": str(corpus)}},
        "phases": [{"stage": "finetune-structure", "tasks": ["threads"], "max_steps": 3}],
        "retries": {"max_retries": 1, "delay_seconds": 0.1, "jitter": 0},
    }
    return PipelineConfig.model_validate({**raw, **changes})


def log(config: PipelineConfig) -> list[str]:
    """Names of the stages that ran so far, in order."""
    path = Path(config.root) / "log.txt"
    return path.read_text().split() if path.exists() else []


def toy_stage(
    name: str, upstream: tuple[str, ...] = (), corpus: bool = False, settings: str = "seed"
) -> Stage:
    """A stage that reads the corpus or its upstream's `out.txt` and writes `out.txt`."""

    def run(context: StageContext) -> dict[str, Any]:
        folder = Path(context.config.root)
        order = folder / name
        act = order.read_text().strip() if order.exists() else ""
        if act == "edit-corpus":
            order.unlink()
            (folder / "corpus.txt").write_text("edited\n")
        with (folder / "log.txt").open("a") as lines:
            lines.write(f"{name}\n")
        if act == "fail":
            order.unlink()  # the next attempt goes well
            raise OSError("the network is away")
        if act == "refuse":
            raise InputError("corpus.txt, line 1: expected better")
        if act.startswith("linger "):
            _, seconds, text = act.split()
            deadline = time.monotonic() + float(seconds)
            while time.monotonic() < deadline and text not in (folder / "network.txt").read_text():
                time.sleep(0.1)
        if act.startswith("meet "):
            deadline = time.monotonic() + 20
            while act.split()[1] not in log(context.config):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name} runs alone")
                time.sleep(0.02)
        if act == "hang":
            run_child("tests.flows.toy_child", ToySpec(output_dir=folder, act="long"), context.work_dir)
        text = "".join((path / "out.txt").read_text() for path in context.upstream.values())
        (context.output_dir / "out.txt").write_text(f"{text}{name}\n")
        return {"lines": len(text.splitlines()) + 1}

    return Stage(
        name=name,
        description=f"Toy {name}.",
        version=1,
        settings=lambda config: {"seed": config.seed},
        inputs=lambda config: {"corpus": Path(config.root) / "corpus.txt"} if corpus else {},
        upstream=lambda config: tuple(Upstream(other, ("out.txt",)) for other in upstream),
        sources=lambda: {},
        run=run,
    )


TOY_STAGES = {
    stage.name: stage
    for stage in (
        toy_stage("build-context", corpus=True),
        toy_stage("convert-model"),
        toy_stage("finetune-structure", ("build-context", "convert-model")),
        toy_stage("evaluate", ("finetune-structure",)),
    )
}


def use_toy_stages(put: Callable[[Any, str, Any], object]) -> None:
    """Let the flows run the toy stages, of which there is no report.

    Args:
        put: sets an attribute of a module, such as `setattr` or that of pytest's `monkeypatch`.
    """
    from flows.orchestration import flow_runs, pipeline_flow, run_pipeline
    from flows.orchestration.tasks import stage_tasks

    for module in (flow_runs, pipeline_flow, run_pipeline, stage_tasks):
        put(module, "STAGES", TOY_STAGES)
    for module in (flow_runs, run_pipeline):
        put(module, "pipeline_references", lambda *_: None)


def main(folder: str) -> None:
    """Run the toy pipeline over `folder` as `jora run` does."""
    from flows.orchestration import run_pipeline

    use_toy_stages(setattr)
    outcome = run_pipeline.run(toy_config(Path(folder)), say=lambda line: print(line, file=sys.stderr))
    print(" ".join(f"{item.stage}:{'cached' if item.cached else 'run'}" for item in outcome.references))
    print("heavy:", sorted({"jax", "torch", "faiss", "transformers"} & set(sys.modules)))


if __name__ == "__main__":
    main(sys.argv[1])
