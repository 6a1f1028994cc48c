"""Print the plan, the finished stages, the evaluation and the findings of the `jora` commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.engine.artifact_store import MANIFEST, ArtifactRef, read_manifest
from flows.engine.plan import PlannedStage
from flows.report.facts import TRAINED_FIRST
from flows.report.statistics_sections import (
    TOGETHER,
    combined_differences,
    headline_comparisons,
    headline_seeds,
)
from flows.report.wording import points, probability, verdict_text
from retrieval.evaluation.build_messages import left_out_line
from retrieval.evaluation.drawn_records import few_contexts_of_tasks

if TYPE_CHECKING:
    from rich.console import Console

KEY_LENGTH = 12
PLAIN_WIDTH = 120  # in columns, where no terminal has a width
RETRIEVAL = ("recall@1", "recall@10", "mrr")
# Metrics of thread, table and document records. Those of one table are of the same records.
METRICS = (
    ("target@1", "reply@1", "joint", "p(reply|target)"),
    ("normalised_reply@1", "normalised_target@1"),
    ("p(reply|not target)",),
    ("invalid_answers",),
    ("denotation_accuracy",),
    ("exact_match", "f1"),
    ("has_answer_exact_match", "has_answer_f1"),
    ("no_answer_accuracy",),
    ("character_exact_match", "character_f1"),
    ("hotpotqa_exact_match", "hotpotqa_f1", "supporting_fact_exact_match", "supporting_fact_f1"),
    ("joint_exact_match", "joint_f1"),
    ("quotation_verbatim",),
    ("quotation_precision",),
)

# Of links as sets, and of the conversations that they make.
LINK_METRICS = (
    ("link_precision", "link_recall", "link_f1"),
    ("one_minus_vi", "adjusted_rand_index", "one_to_one", "shen_f1", "exact_f1"),
)


@dataclass(frozen=True)
class Finding:
    """The result of one check of `jora doctor`.

    The pipeline cannot run after `fail`, but can run after `warn`.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


def print_plan(lines: Sequence[PlannedStage]) -> None:
    """Print one line for each planned stage: whether it would run, its key, and the reason."""
    table = _grid("stage", "would", "key", "because")
    for line in lines:
        style = "green" if line.action == "cached" else "yellow"
        table.add_row(line.name, f"[{style}]{line.action}[/]", line.key[:KEY_LENGTH], _plain(line.reason))
    _console().print(table)


def print_sharing(phases: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line for each phase: its number of tokens with shared contexts and without."""
    for stage, counts in phases.items():
        if "unknown" in counts:
            print(f"{stage}: tokens not counted, {counts['unknown']}")
            continue
        part = "" if counts["exact"] else f" (the first of {counts['records_selected']:,})"
        print(
            f"{stage}: {counts['records']:,} records{part} in {counts['groups']:,} groups, an epoch of "
            f"{counts['tokens']:,} tokens; {counts['tokens_apart']:,} without sharing "
            f"({counts['factor']:.2f}x)"
        )


def print_reference(reference: ArtifactRef) -> None:
    """Print one line about a stage: whether it was cached or ran, its seconds and its key."""
    what = "cached" if reference.cached else "ran"
    key = reference.key[:KEY_LENGTH]
    print(
        f"{reference.stage:<20} {what:<7} {reference.seconds:>8.1f} s  {key}  {reference.reason}".rstrip(),
        # A stage takes minutes to hours. Without a flush, Python would write to a pipe only at the end.
        flush=True,
    )


def print_outcome(references: Sequence[ArtifactRef], report: Path | None) -> None:
    """Print one line for each stage, the table of scores, and the paths of the results."""
    for reference in references:
        print_reference(reference)
    print_results(references)
    if report:
        print(f"report: {report}")


def print_results(references: Sequence[ArtifactRef]) -> None:
    """Print the scores and the path of the exported model, if the references have these stages."""
    scores = evaluation_of(references)
    if scores:
        print()
        print_scores(scores)
    for reference in references:
        if reference.stage == "compare-seeds":
            print_seeds(json.loads((Path(reference.path) / "seeds.json").read_text(encoding="utf-8")))
        if reference.stage == "export":
            print(f"exported model: {Path(reference.path) / 'model'}")
            print(f"exported adapter: {Path(reference.path) / 'adapter'}")
        if reference.stage == "push":
            pushed = json.loads((Path(reference.path) / "push.json").read_text(encoding="utf-8"))
            print(f"uploaded: {pushed['files']} files to {pushed['url']}")


def print_scores(scores: dict[str, Any]) -> None:
    """Print a table of scores for each kind of records.

    The rows are systems and the columns are metrics. Each value has a 95 % interval.
    """
    systems: dict[str, dict[str, Any]] = dict(scores["systems"])
    for name, values in scores.get("generated", {}).get("systems", {}).items():
        # Answers to the same records in another mode are two rows of one system, not two systems.
        systems[f"{name}, written freely"] = values
    console = _console()
    for metrics in METRICS:
        # A system has the metrics of those tasks that it answered; baselines answer threads only.
        rows = {name: values for name, values in systems.items() if metrics[0] in values}
        if not rows:
            continue
        table = _grid("system", *metrics)
        for name, values in rows.items():
            table.add_row(name, *(_interval(values[metric]) for metric in metrics))
        # All systems answer the same records, so one row's count is every row's.
        count = next(iter(rows.values()))[metrics[0]]["n"]
        console.print(table)
        console.print(f"n={count}, with 95 % intervals, bootstrap by context\n", style="dim")
    for warning in few_contexts_of_tasks(scores.get("drawn", {})):
        console.print(f"{warning}\n", style="yellow")
    shown = next((name for name in TRAINED_FIRST if name in systems), None)
    for measure, system, rows in headline_comparisons(scores, shown):
        table = _grid(f"{system} against", f"{measure} in points", "p, corrected", "verdict")
        for name, row in rows.items():
            table.add_row(name, points(row), probability(row["p_holm"]), verdict_text(row))
        console.print(table)
        console.print("paired by record, over contexts; p corrected for these rows (Holm)\n", style="dim")
    for origin, found in scores.get("question_origins", {}).items():
        # Alone, made questions are what the tables above are of.
        if len(scores["question_origins"]) > 1:
            table = _grid(f"questions, {origin}", "exact_match", "f1")
            for name, values in found["systems"].items():
                table.add_row(name, *(_interval(values[metric]) for metric in ("exact_match", "f1")))
            console.print(table)
            console.print(f"n={found['records']}, of the questions above\n", style="dim")
    _print_links(console, scores.get("links"))
    for lines in scores.get("left_out", {}).values():
        for line in lines:
            console.print(f"not measured: {line}", style="dim")
    for name, found in combined_differences(scores).items():
        line = f"reply@1 of {TOGETHER} minus {name}: {_interval(found)}"
        console.print(f"{line}, right alone {found['only_one']} and {found['only_other']}", style="dim")
    if brier := scores.get("combined", {}).get("brier"):
        line = f"Brier score of {TOGETHER} minus learned: {_interval(brier['difference'])}, less is better"
        console.print(line, style="dim")


def print_seeds(found: dict[str, Any]) -> None:
    """Print the means over training seeds, and how the most trained system compares with each other one.

    Args:
        found: content of `seeds.json`.
    """
    console = _console()
    for measure, means, rows in headline_seeds(found):
        compared = {row["other"]: row for row in rows}
        seeds = [f"seed {seed}" for seed in found["seeds"]]
        shown = f"{rows[0]['one']} is" if rows else ""
        table = _grid("system", f"{measure}, mean", *seeds, "spread", shown)
        for name, mean in means.items():
            values = [f"{value:.3f}" for value in (*mean["by_seed"], mean["spread"])]
            table.add_row(
                name, _interval(mean), *values, verdict_text(compared[name]) if name in compared else ""
            )
        console.print(table)
        console.print("intervals and verdicts over contexts and seeds\n", style="dim")


def _print_links(console: Console, found: Mapping[str, Any] | None) -> None:
    """Print the scores of links as sets and of conversations, if the evaluation has them."""
    if not found:
        return
    for metrics in LINK_METRICS:
        table = _grid("system", *metrics)
        for name, values in found["systems"].items():
            table.add_row(name, *(_interval(values[metric]) for metric in metrics))
        console.print(table)
    counts = f"{found['links']:,} links of {found['messages']:,} messages in {found['logs']:,} threads"
    console.print(f"{counts}, starts of conversations among them\n", style="dim")


def print_records(reference: ArtifactRef) -> bool:
    """Print the number of records, the quality of the fused retriever, and what was left out.

    Returns:
        Whether the artifact contains metrics of records.
    """
    manifest = read_manifest(Path(reference.path) / MANIFEST)
    metrics = manifest["metrics"] if manifest is not None else {}
    if "tasks" not in metrics:
        return False
    table = _grid("task", "train", "test", "contexts", "found", *RETRIEVAL)
    for name, task in metrics["tasks"].items():
        ranked = task["retrieval"].get("test", {})
        fused = ranked.get("learned", ranked.get("fused", {}))
        share = task["oracle_in_context"]["test"]
        table.add_row(
            name,
            *(f"{task['records'][split]:,}" for split in ("train", "test")),
            f"{sum(task['contexts'].values()):,}",
            "-" if share is None else f"{share:.3f}",
            *(_bounded(fused, measure) for measure in RETRIEVAL),
        )
    guarded = _grid("task", "searched", "leaks", "equal", "nearly equal", "held-out contexts in training")
    for name, task in metrics["tasks"].items():
        guards = task["guards"]
        counts = (
            guards["records_searched"],
            sum(guards["leaks_dropped"].values()),
            guards["exact_duplicates_dropped"],
            guards["near_duplicates_dropped"],
            guards["test_contexts_in_training_prompts"],
        )
        guarded.add_row(name, *(f"{count:,}" for count in counts))
    console = _console()
    console.print(table)
    said = "found: share of the held-out prompts that hold the answer; fused, 95 % intervals by context"
    console.print(f"{said}\n", style="dim")
    console.print(guarded)
    console.print("left out: leaks, and training records (nearly) equal to held-out ones", style="dim")
    for name, task in metrics["tasks"].items():
        lines = [
            left_out_line(name, task.get("dropped", {})),
            *(f"{name}: {w}" for w in task.get("warnings", ())),
        ]
        for line in filter(None, lines):
            console.print(line, soft_wrap=True, markup=False)
    return True


def evaluation_of(references: Sequence[ArtifactRef]) -> dict[str, Any] | None:
    """Return the scores of the evaluation among the references; None without an evaluation."""
    for reference in references:
        if reference.stage == "evaluate":
            return json.loads((Path(reference.path) / "metrics.json").read_text(encoding="utf-8"))
    return None


def outcome_as_json(references: Sequence[ArtifactRef], report: Path | None) -> dict[str, Any]:
    """Return the result of a run as JSON values, for other programs."""
    exported = [str(Path(item.path) / "model") for item in references if item.stage == "export"]
    return {
        "stages": [reference.model_dump(mode="json") for reference in references],
        "evaluation": evaluation_of(references),
        "model": exported[0] if exported else None,
        "report": str(report) if report else None,
    }


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of plain texts."""
    table = _grid(*headers)
    for row in rows:
        table.add_row(*map(_plain, row))
    _console().print(table)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line for each check of `jora doctor`."""
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = _grid("check", "", "found")
    for finding in findings:
        table.add_row(finding.name, f"[{styles[finding.state]}]{finding.state}[/]", _plain(finding.detail))
    _console().print(table)


def _bounded(leg: dict[str, Any], measure: str) -> str:
    if leg.get(measure) is None:
        return "-"
    low, high = leg.get("interval", {}).get(measure, (None, None))
    return (
        _interval({"value": leg[measure], "low": low, "high": high})
        if low is not None
        else f"{leg[measure]:.3f}"
    )


def _interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "-"
    if value["low"] is None:  # all records are of one context
        return f"{value['value']:.3f}"
    # The backslash, because rich reads an opening bracket as markup.
    return f"{value['value']:.3f} \\[{value['low']:.3f}, {value['high']:.3f}]"


def _plain(text: str) -> str:
    """Escape the brackets of a text, which rich would read as markup."""
    from rich.markup import escape

    return escape(text)


def _grid(*headers: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def _console() -> Console:
    from rich.console import Console

    # Rich would colour numbers and paths by its own guess.
    console = Console(highlight=False)
    if not console.is_terminal:
        # Into a file or a pipe rich assumes 80 columns and would break the keys and reasons.
        console.width = max(console.width, PLAIN_WIDTH)
    return console
