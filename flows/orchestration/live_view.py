"""What a flow run shows in Prefect's UI: the plan with its reasons, the progress of a training, the report.

The artifacts are numbered, because Prefect's UI shows those of a run in random order: the link to the report,
the plan, progress and loss of each phase, then the main sections of the report. A run without work publishes
nothing. All functions need a flow run, and none of them fails the run: an artifact that cannot be published
is one line of the log.
"""

# ruff: noqa: E402  (the environment must be prepared before Prefect is imported)

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from flows.orchestration.prefect_server import prepare_environment

prepare_environment()

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Store
from flows.engine.plan import PlannedStage
from flows.report.page import markdown_sections, write_report
from flows.report.svg_charts import Series, data_uri, line_chart, smooth, thin
from flows.report.wording import byte_size, duration

# Address of the report server by folder of the store, as JSON; `jora serve` sets it for its worker.
REPORT_SERVERS = "JORA_REPORT_SERVERS"
PROGRESS_SECONDS = 5.0
# Sections of the report by the key of their artifact. The HTML report has all sections.
SECTIONS = {
    "04-retrieval": "retrieval",
    "05-evaluation": "evaluation",
    "05-gates": "gates",
    "06-lineage": "lineage",
}
Row = dict[str, Any]


def plan_markdown(plan: Sequence[PlannedStage]) -> str:
    """Return a plan as a markdown table, with the reason of each stage."""
    running = sum(line.action == "run" for line in plan)
    rows = [
        f"| {line.name} | {line.action} | {line.reason.replace('|', chr(92) + '|')} | `{line.key[:12]}` |"
        for line in plan
    ]
    head = f"{running} of {len(plan)} stages run; the others are taken from the store."
    return "\n".join([head, "", "| Stage | Would | Because | Key |", "|---|---|---|---|", *rows]) + "\n"


def publish_plan(plan: Sequence[PlannedStage]) -> None:
    """Show the plan of the current flow run as its first table."""
    with _never_failing("the plan"):
        create_markdown_artifact(
            plan_markdown(plan), key="01-plan", description="Plan: which stages run, and why"
        )


def report_place(store: Store, page: Path) -> str:
    """Return the address of a report if `jora serve` serves the store, and else the path of its file."""
    address = json.loads(os.environ.get(REPORT_SERVERS, "{}")).get(str(store.root))
    return f"{address}/{page.relative_to(store.root)}" if address else str(page)


def publish_report(config: PipelineConfig, store: Store, whole: Sequence[ArtifactRef]) -> None:
    """Show the main sections of the report, and the link to its HTML page if `jora serve` serves the store.

    Args:
        config: configuration of the run.
        store: the artifact store, which also contains the report.
        whole: the artifacts of all stages.
    """
    with _never_failing("the report"):
        # Not the copy: the link shows the report of this run also when a later run has written a newer one.
        page = write_report(store, config, whole, latest=False)
        sections = markdown_sections(config, whole)
        place = report_place(store, page)
        link = f"[Open the HTML report]({place})" if place.startswith("http") else f"`{place}`"
        # In the log of the run too, which is nearer than the page of the artifact.
        get_run_logger().info("report: %s", place)
        create_markdown_artifact(
            f"{link}\n\n{sections.get('summary', '')}", key="00-report", description="Report of this run"
        )
        for key, name in SECTIONS.items():
            if name in sections:
                title = sections[name].splitlines()[0].removeprefix("## ")
                create_markdown_artifact(sections[name], key=key, description=title)


@contextmanager
def progress_shown(config: PipelineConfig, store: Store, stage: str, key: str) -> Iterator[None]:
    """Show the progress and the loss of a training while the block lasts, and its last state at the end.

    Args:
        config: configuration of the run.
        store: store in which the stage writes its metrics.
        stage: name of the stage. Only the phases of a training have progress of this kind.
        key: key of the stage.
    """
    phase = next((phase for phase in config.phases if phase.stage == stage), None)
    if phase is None:
        yield
        return
    view = _PhaseView(stage, phase.max_steps, store.root / ".tmp" / f"{stage}-{key}" / "metrics.jsonl")
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            view.show()

    # With a copy of the context, which names the task run to Prefect.
    watcher = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        # The finished artifact has the last steps, which the watcher may have missed.
        view.path = store.path(stage, key) / "metrics.jsonl"
        view.show()


@dataclass
class _PhaseView:
    """The artifacts of one phase: a table of its progress, and its loss as a chart.

    Attributes:
        stage: name of the stage.
        steps: number of steps; None if epochs decide.
        path: metrics of the training, with one row for each step.
    """

    stage: str
    steps: int | None
    path: Path
    shown: int = 0
    progress: UUID | None = None
    loss: UUID | None = None

    def show(self) -> None:
        """Publish the state of the training, if it has made a step since the last time."""
        rows = read_rows(self.path)
        if len(rows) in (0, self.shown):
            return
        name = self.stage.replace("-", " ")
        with _never_failing(f"the progress of {name}"):
            self.progress = _publish(
                self.progress,
                progress_markdown(rows, self.steps),
                f"02-progress-{self.stage}",
                f"Progress: {name}",
            )
            self.loss = _publish(self.loss, loss_markdown(rows), f"03-loss-{self.stage}", f"Loss: {name}")
        self.shown = len(rows)


def read_rows(path: Path) -> list[Row]:
    """Return the whole rows of a metrics file that may be in the middle of a write."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []


def progress_markdown(rows: Sequence[Row], steps: int | None) -> str:
    """Return the state of a training as a table.

    Args:
        rows: rows of the metrics so far, at least one.
        steps: number of steps of the training; None if epochs decide.
    """
    last = rows[-1]
    recent = [row["seconds"] for row in rows[-50:]]
    cells = [("Step", f"{last['step']:,} of {steps:,}" if steps else f"{last['step']:,}")]
    cells.append(("Loss", f"{last['loss']:.4f}"))
    if held_out := [row["validation_loss"] for row in rows if "validation_loss" in row]:
        cells.append(("Held-out loss", f"{held_out[-1]:.4f}"))
    cells.append(("Tokens/s", f"{last['tokens_per_s']:,.0f}"))
    if steps:
        left = (steps - last["step"]) * sum(recent) / len(recent)
        cells.append(("Time left", duration(left) if last["step"] < steps else "done"))
    cells.append(("Peak device memory", byte_size(last["peak_memory_bytes"])))
    names, values = zip(*cells, strict=True)
    return f"| {' | '.join(names)} |\n|{'---:|' * len(cells)}\n| {' | '.join(values)} |\n"


def loss_markdown(rows: Sequence[Row]) -> str:
    """Return the loss of a training so far as an embedded chart."""
    raw = tuple((float(row["step"]), float(row["loss"])) for row in rows)
    words = f"Loss over {len(rows):,} steps, from {raw[0][1]:.3f} to {raw[-1][1]:.3f}."
    lines = [Series("each step", thin(raw), raw=True), Series("moving mean", thin(smooth(raw)))]
    return f"![{words}]({data_uri(line_chart('Loss', words, lines, 'step', 'loss per answer token'))})\n"


def _publish(known: UUID | None, text: str, key: str, description: str) -> UUID:
    """Create an artifact, or change its text; return its id."""
    if known is None:
        # Awaitable only where an event loop runs, says Prefect's type; here none does.
        return cast("UUID", create_markdown_artifact(text, key=key, description=description))
    with get_client(sync_client=True) as client:
        client.update_artifact(known, ArtifactUpdate(data=text))
    return known


@contextmanager
def _never_failing(what: str) -> Iterator[None]:
    """Log an error of the block in one line: a server that is away must not end a training."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        get_run_logger().warning("%s is not shown in the UI: %s", what, reason)
