"""The sections of the report, each made by one function from the facts of a run."""

from __future__ import annotations

from collections.abc import Sequence

from flows.report.blocks import Block, Columns, Fact, Facts, Figure, Prose, Section, Table
from flows.report.facts import TRAINED_FIRST, RunFacts
from flows.report.lineage_sections import configuration, lineage
from flows.report.records_sections import corpora, made_questions, predictions, records, retrieval
from flows.report.statistics_sections import (
    HEADLINES,
    against,
    calibration,
    combined_differences,
    comparisons,
    seeds,
)
from flows.report.svg_charts import Bar, BarKind, Series, bar_chart, line_chart, smooth, thin
from flows.report.thread_sections import link_blocks, slice_blocks
from flows.report.wording import (
    byte_size,
    duration,
    percent,
    points,
    score_note,
    score_text,
    score_value,
    short_number,
    system_name,
    verdict_text,
)
from retrieval.evaluation.drawn_records import few_contexts_of_tasks
from retrieval.settings.task_registry import TASKS

METRICS = ("reply@1", "target@1", "joint", "p(reply|target)")
_BASELINES = TASKS["threads"].facts.baselines
METRIC_NAMES = {
    "reply@1": "the right post",
    "target@1": "the right author",
    "joint": "both right",
    "p(reply|target)": "right post given right author",
}
OTHER_METRICS = {
    "normalised_reply@1": "The right post, by log-likelihood for a character",
    "normalised_target@1": "The right author, by log-likelihood for a character",
    "p(reply|not target)": "Right post where the named author is wrong",
    "invalid_answers": "Written answers that are none of the choices",
    "denotation_accuracy": "Table questions, denotation accuracy",
    "exact_match": "Document questions, exact match",
    "f1": "Document questions, F1 of words",
    "has_answer_exact_match": "Document questions with an answer, exact match",
    "has_answer_f1": "Document questions with an answer, F1 of words",
    "no_answer_accuracy": "Document questions without an answer, share left unanswered",
    "character_exact_match": "Answers in scripts without blanks, exact match",
    "character_f1": "Answers in scripts without blanks, F1 of characters",
    "hotpotqa_exact_match": "Questions with supporting facts, exact match (HotpotQA)",
    "hotpotqa_f1": "Questions with supporting facts, F1 of words (HotpotQA)",
    "supporting_fact_exact_match": "Supporting facts by quotations, exact match (HotpotQA)",
    "supporting_fact_f1": "Supporting facts by quotations, F1 (HotpotQA)",
    "joint_exact_match": "Answer and supporting facts, exact match (HotpotQA)",
    "joint_f1": "Answer and supporting facts, F1 (HotpotQA)",
    "quotation_verbatim": "Quotations, share that is in the prompt word for word",
    "quotation_precision": "Quotations, share that is in a right document word for word",
}
PHASE_NAMES = {"finetune-structure": "Phase 1: structure", "finetune-task": "Phase 2: task"}


def sections(facts: RunFacts) -> list[Section]:
    """Return the sections that are not empty for this run, in reading order."""
    return [
        Section(name, title, tuple(blocks))
        for name, title, blocks in (
            ("summary", "Summary", summary(facts)),
            ("evaluation", "Evaluation", evaluation(facts)),
            ("seeds", "Training seeds", seeds(facts)),
            ("gates", "Gates", gates(facts)),
            ("questions", "Made questions", made_questions(facts)),
            ("retrieval", "Retrieval", retrieval(facts)),
            ("corpora", "Records and guards", corpora(facts)),
            ("training", "Training", training(facts)),
            ("right", "Predictions that were right", predictions(facts, right=True)),
            ("wrong", "Predictions that were wrong", predictions(facts, right=False)),
            ("records", "Training records", records(facts)),
            ("resources", "Time and memory", resources(facts)),
            ("lineage", "Lineage", lineage(facts)),
            ("configuration", "Configuration", configuration(facts)),
        )
        if blocks
    ]


def summary(facts: RunFacts) -> list[Block]:
    """Return blocks with the most important numbers of the run."""
    items: list[Fact] = []
    shown = facts.shown_system
    if shown:
        metric = next((name for name in HEADLINES if name in facts.systems[shown]), "reply@1")
        score = facts.systems[shown].get(metric, {})
        items.append(
            Fact(f"{system_name(shown)}: {HEADLINES[metric]}", score_value(score), score_note(score))
        )
        rival = _best_baseline(facts)
        if rival:
            other = facts.systems[rival]["reply@1"]
            items.append(
                Fact(
                    f"Best baseline: {system_name(rival)}",
                    score_value(other),
                    "; ".join(filter(None, (score_note(other), _compared(facts, "reply@1", rival)))),
                )
            )
        if shown != "base" and "base" in facts.systems:
            before = facts.systems["base"].get(metric, {})
            note = "; ".join(filter(None, (score_note(before), _compared(facts, metric, "base"))))
            items.append(Fact("Before fine-tuning", score_value(before), note))
    counts = [task["records"] for task in facts.context.values() if "records" in task]
    if counts:
        train, test = (sum(count[split] for count in counts) for split in ("train", "test"))
        items.append(Fact("Records", f"{train + test:,}", f"{train:,} to train on, {test:,} held out"))
    if facts.manifests:
        seconds = sum(manifest["seconds"] for manifest in facts.manifests.values())
        items.append(Fact("Work in this result", duration(seconds), f"over {len(facts.manifests)} stages"))
    blocks: list[Block] = [Facts(tuple(items))] if items else []
    if "export" in facts.folders:
        blocks.append(Prose(f"The exported model: `{facts.folders['export'] / 'model'}`."))
    return blocks


def evaluation(facts: RunFacts) -> list[Block]:
    """Return blocks with the scores of each system and of the baselines."""
    systems = [name for name in (*_BASELINES, *reversed(TRAINED_FIRST)) if name in facts.systems]
    # Systems of a newer stage, which this module does not know, still get their rows.
    systems += [name for name in facts.systems if name not in systems]
    blocks: list[Block] = [Prose(text) for text in few_contexts_of_tasks(facts.evaluation.get("drawn", {}))]
    # Without thread records there are no scores of replies, only of answers.
    blocks += _reply_scores(facts, [name for name in systems if "reply@1" in facts.systems[name]])
    baseline = _best_baseline(facts)
    blocks += slice_blocks(facts, [name for name in systems if name not in _BASELINES or name == baseline])
    blocks += link_blocks(facts)
    for metric, title in OTHER_METRICS.items():
        scores = {name: facts.systems[name][metric] for name in systems if metric in facts.systems[name]}
        if scores:
            n = max(score["n"] for score in scores.values())
            rows = tuple((system_name(name), score_text(score)) for name, score in scores.items())
            blocks.append(Table(f"{title}, n\u00a0=\u00a0{n:,}", ("System", "Score (95 % interval)"), rows))
    blocks += _origins(facts, systems)
    left_out = [line for lines in facts.evaluation.get("left_out", {}).values() for line in lines]
    if left_out:
        blocks.append(Prose("Not measured here: " + ". ".join(left_out) + "."))
    written = facts.evaluation.get("generated", {}).get("systems", {})
    blocks += comparisons(facts)
    blocks += calibration(facts)
    if written:
        rows = tuple(
            (system_name(name), *(score_text(scores.get(metric)) for metric in METRICS))
            for name, scores in written.items()
        )
        blocks.append(Table("The same, written freely instead of chosen", ("System", *METRICS), rows))
    return blocks


def _origins(facts: RunFacts, systems: Sequence[str]) -> list[Block]:
    """Return the scores of questions by people and of made ones apart, if the records have made ones."""
    found = facts.evaluation.get("question_origins", {})
    rows = tuple(
        (
            system_name(name),
            "by people" if origin == "human" else "made by a model",
            f"{scores['records']:,}",
            *(score_text(scores["systems"][name].get(metric)) for metric in ("exact_match", "f1")),
        )
        for name in systems
        for origin, scores in found.items()
        if name in scores["systems"]
    )
    headers = ("System", "Questions", "n", "Exact match", "F1 of words")
    return [Table("Document questions, by who asked them", headers, rows, (1,))] if rows else []


def gates(facts: RunFacts) -> list[Block]:
    """Return blocks with the verdict on each gate of the configuration."""
    found = facts.json("check-gates", "gates.json")
    if not found:
        return []
    rows = tuple(
        ("met" if verdict["passed"] else "not met", verdict["text"]) for verdict in found["verdicts"]
    )
    if found["passed"]:
        said = "All gates are met."
    elif facts.config.ignore_gates:
        said = "The model was exported although a gate is not met, because `ignore_gates` is set."
    else:
        said = "A gate is not met, so nothing was exported."
    return [Prose(said), Table("", ("Gate", "Measured"), rows, text_columns=(1,))]


def _drawn_note(facts: RunFacts) -> str:
    """Return from how many comments and threads those of the evaluation were drawn; "" if all were scored."""
    drawn = facts.evaluation.get("drawn", {}).get("threads")
    if not drawn or drawn["records"] == drawn["of_records"]:
        return ""
    return f" (drawn by seed from {drawn['of_records']:,} in {drawn['of_contexts']:,} threads)"


def _reply_scores(facts: RunFacts, systems: list[str]) -> list[Block]:
    """Return blocks with each system's scores on thread records, as charts and as a table."""
    if not systems:
        return []
    n = facts.evaluation.get("n") or facts.systems[systems[0]]["reply@1"]["n"]
    contexts = facts.evaluation.get("contexts")
    where = f" in {contexts:,} threads" if contexts else ""
    words = (
        f"{n:,} held-out comments{where}{_drawn_note(facts)}: which earlier post does each one answer? Every "
        "comment counts, also where retrieval missed the right post. Whiskers and brackets are 95 % "
        "intervals, from resampling whole threads."
    )
    figures = [_score_chart(facts, metric, systems) for metric in METRICS]
    rows = tuple(
        (system_name(name), *(score_text(facts.systems[name].get(metric)) for metric in METRICS))
        for name in systems
    )
    strong = tuple(index for index, name in enumerate(systems) if name == facts.shown_system)
    return [
        Prose(words),
        Columns(tuple(figure for figure in figures if figure)),
        Table("Scores with 95 % intervals", ("System", *METRICS), rows, strong_rows=strong),
        *_combined_note(facts),
    ]


def _combined_note(facts: RunFacts) -> list[Block]:
    """Return how model and learned fusion were weighed, and how both together differ from each of them."""
    combined = facts.evaluation.get("combined")
    if not combined:
        return []
    weights = combined["weights"]
    differences = [
        f"{points(found)} points against {system_name(name)}: {found['only_one']:,} comments that only both "
        f"together answer rightly, {found['only_other']:,} that only the other does"
        for name, found in combined_differences(facts.evaluation).items()
    ]
    # Reports of older evaluations have none.
    brier, sure = combined.get("brier"), ""
    if brier and brier["together"] is not None:
        sure = (
            " The Brier score of their probabilities, on the comments whose post is in the prompt, is "
            f"{100 * brier['together']:.1f} points, and {100 * brier['learned']:.1f} without the model: a "
            f"difference of {points(brier['difference'])} points; less is better."
        )
    return [
        Prose(
            f"Model and learned fusion: {short_number(weights['model'])} · log-probability of the model + "
            f"{short_number(weights['learned'])} · that of the fusion, weighed on {weights['fitted_on']:,} "
            "training comments that the model has not seen."
            + (f" The right post, on the same comments: {'; '.join(differences)}." if differences else "")
            + sure
        )
    ]


def training(facts: RunFacts) -> list[Block]:
    """Return blocks with the loss curve and the main numbers of each phase."""
    figures: list[Figure] = []
    rows: list[tuple[str, ...]] = []
    for stage, title in PHASE_NAMES.items():
        steps = facts.training(stage)
        if not steps:
            continue
        raw = tuple((float(row["step"]), float(row["loss"])) for row in steps)
        # The loss of single steps varies with the batch. The mean shows the trend, the thin line all steps.
        lines = [Series("each step", thin(raw), raw=True), Series("moving mean", thin(smooth(raw)))]
        held_out = tuple(
            (float(row["step"]), float(row["validation_loss"])) for row in steps if "validation_loss" in row
        )
        if held_out:
            lines.append(Series("held out", held_out))
        words = f"Loss over {len(steps):,} steps, from {raw[0][1]:.3f} to {lines[1].points[-1][1]:.3f}."
        chart = line_chart(f"{title}, loss", words, lines, "step", "loss per answer token")
        figures.append(Figure(f"{title}, loss", chart))
        result = facts.manifests[stage]["metrics"] if stage in facts.manifests else {}
        tokens, seconds = sum(row["tokens"] for row in steps), float(result.get("seconds", 0))
        rows.append(
            (
                title,
                f"{len(steps):,}",
                f"{result.get('mean_loss_last_10', raw[-1][1]):.4f}",
                f"{tokens:,}",
                f"{sum(row['supervised_tokens'] for row in steps):,}",
                f"{tokens / seconds:,.0f}" if seconds else "",
                duration(seconds) if seconds else "",
            )
        )
    if not figures:
        return []
    headers = ("Phase", "Steps", "Loss, last 10", "Tokens", "Answer tokens", "Tokens/s", "Time")
    return [Columns(tuple(figures)), Table("What was trained", headers, tuple(rows))]


def resources(facts: RunFacts) -> list[Block]:
    """Return blocks with the wall time and the peak memory of each stage."""
    if not facts.manifests:
        return []
    rows = []
    for name, manifest in facts.manifests.items():
        peak = manifest["metrics"].get("peak_memory_bytes")
        size = sum(output["size"] for output in manifest["outputs"].values())
        rows.append((name, duration(manifest["seconds"]), byte_size(peak) if peak else "", byte_size(size)))
    slowest = max(facts.manifests, key=lambda name: facts.manifests[name]["seconds"])
    chart = bar_chart(
        "Wall time of each stage",
        f"{slowest} took longest: {duration(facts.manifests[slowest]['seconds'])}.",
        [Bar(name, manifest["seconds"]) for name, manifest in facts.manifests.items()],
        value_format=duration,
        axis=False,
    )
    note = "Of the run that made the artifact; a cached stage costs nothing."
    figure = Figure("Wall time of each stage", chart, note)
    table = Table("By stage", ("Stage", "Time", "Peak memory", "Artifact"), tuple(rows))
    return [Columns((figure, table))]


def _score_chart(facts: RunFacts, metric: str, systems: Sequence[str]) -> Figure | None:
    scores = [(name, facts.systems[name].get(metric, {})) for name in systems]
    bars = [
        Bar(system_name(name), score["value"], score["low"], score["high"], _kind(facts, name))
        for name, score in scores
        if score.get("value") is not None
    ]
    if not bars:
        return None
    said = "; ".join(f"{bar.label} {percent(bar.value)}" for bar in bars)
    title = f"{metric}: {METRIC_NAMES[metric]}"
    return Figure(title, bar_chart(title, f"{said}.", bars, x_range=(0.0, 1.0)))


def _best_baseline(facts: RunFacts) -> str | None:
    scores = {
        name: facts.systems[name]["reply@1"]["value"]
        for name in _BASELINES
        if facts.systems.get(name, {}).get("reply@1", {}).get("value") is not None
    }
    return max(scores, key=lambda name: scores[name], default=None)


def _compared(facts: RunFacts, metric: str, rival: str) -> str:
    """Return in words how the shown system compares with another one; "" if they were not compared."""
    for tables in facts.evaluation.get("comparisons", {}).values():
        row = against(tables.get(metric, ()), facts.shown_system).get(rival)
        if row:
            return f"{system_name(facts.shown_system or '')} is {verdict_text(row)}"
    return ""


def _kind(facts: RunFacts, name: str) -> BarKind:
    if name in _BASELINES:
        return "baseline"
    return "final" if name == facts.shown_system else "model"
