"""Sections of the report about the quality of the retrieval, the corpora, their records, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.blocks import Answer, Block, Columns, Example, Figure, Mark, Passage, Prose, Table
from flows.report.facts import SAMPLES, TRAINED_FIRST, Judged, RunFacts, means_gold
from flows.report.svg_charts import Bar, Series, bar_chart, line_chart
from flows.report.wording import in_reading_order, leg_name, percent, score_text, system_name
from retrieval.settings.task_registry import TASKS

NOT_RETRIEVED = "(the right post was not retrieved, so it is not in the prompt)"
DEPTHS = (1, 3, 5, 10, 20)
#: Description of each task's records. Tasks with a measured retriever come first.
TASK_NAMES = {
    name: entry.facts.records
    for name, entry in sorted(TASKS.items(), key=lambda item: not item[1].facts.ranked)
}
#: Columns of the table of legs, with their headers. The table shows those that the artifact has.
MEASURES = (
    *((f"recall@{k}", f"Recall@{k}") for k in DEPTHS),
    ("mrr", "MRR"),
    ("ndcg@10", "nDCG@10"),
)
#: Measures with intervals. A table with all intervals is wider than a page.
BOUNDED = ("recall@1", "recall@10", "mrr")
GROUPS = (
    ("by_distance", "by messages back to the right post", "Messages back"),
    ("by_length", "by words of the question", "Words"),
)
GROUP_MEASURES = (
    ("recall@1", "Recall@1"),
    ("recall@5", "Recall@5"),
    ("recall@10", "Recall@10"),
    ("mrr", "MRR"),
)


def retrieval(facts: RunFacts) -> list[Block]:
    """Return blocks with recall@k of each retrieval leg, over all questions and for groups of questions."""
    blocks: list[Block] = []
    for task in TASK_NAMES:
        metrics = facts.context.get(task, {})
        legs = {
            leg: found
            for leg, found in metrics.get("retrieval", {}).get("test", {}).items()
            if found.get("n") and found.get("recall@1") is not None
        }
        if legs:
            blocks += _legs(task, metrics, legs)
    return blocks


def _legs(task: str, metrics: Mapping[str, Any], legs: Mapping[str, Any]) -> list[Block]:
    title = TASK_NAMES[task]
    named = in_reading_order(legs)
    lines = [
        Series(leg_name(leg), tuple((float(i), legs[leg][f"recall@{k}"]) for i, k in enumerate(DEPTHS)))
        for leg in named
    ]
    # Charts need a description for readers who cannot see them, which names the best leg.
    best = max(named, key=lambda leg: legs[leg]["recall@10"])
    contexts = TASKS[task].facts.contexts
    chart = line_chart(
        f"Recall at k, {title}",
        f"Share of the right {contexts} among the first k, by leg. {leg_name(best)} is best at 10: "
        f"{percent(legs[best]['recall@10'])}.",
        lines,
        "k",
        "recall",
        y_range=(0.0, 1.0),
        y_format=lambda value: f"{100 * value:.0f} %",
        x_categories=[str(k) for k in DEPTHS],
    )
    figures = [Figure(f"Recall at k, {title}", chart, _ceiling_note(metrics))]
    groups = metrics.get("retrieval_groups", {})
    best_name = leg_name("learned" if "learned" in legs else "fused")
    tables = []
    for key, words, header in GROUPS:
        rows = groups.get(key, [])
        # A single group contains all questions, so its figures are known already.
        if len(rows) > 1:
            if len(figures) < 2:  # two figures fit side by side
                figures.append(_group_chart(f"{best_name} recall at 5, {words}", rows))
            tables.append(_group_table(f"{best_name}, {words}", header, rows))
    shown = [(name, header) for name, header in MEASURES if name in legs[named[0]]]
    rows = tuple((leg_name(leg), *(_cell(legs[leg], name) for name, _ in shown)) for leg in named)
    n = legs[named[0]]["n"]
    headers = ("Leg", *(header for _, header in shown))
    said = " (95 % intervals, over contexts)" if "interval" in legs[named[0]] else ""
    caption = f"Held-out {title}, n\u00a0=\u00a0{n:,}{said}"
    strong = "learned" if "learned" in legs else "fused"
    table = Table(
        caption, headers, rows, strong_rows=tuple(i for i, leg in enumerate(named) if leg == strong)
    )
    return [Columns(tuple(figures)), table, *tables, *_learned_fusion(metrics.get("learned_fusion", {}))]


def _learned_fusion(measures: Mapping[str, Any]) -> list[Block]:
    """Return a table of what the learned fusion reaches, and what it reaches without a group of features."""
    if not measures:
        return []
    without = {f"Without {name}": found for name, found in measures["without"].items()}
    systems = {"All features": measures, **without}
    if "test" in measures:
        systems = {"Held-out split": measures["test"], **systems}
    shown = (("link_f1", "Link F1"), ("reply@1", "Reply@1"), ("start_f1", "F1 of starts"))
    rows = tuple(
        (name, *("-" if found[key] is None else f"{found[key]:.3f}" for key, _ in shown))
        for name, found in systems.items()
    )
    caption = (
        f"Learned fusion, fitted on {measures['messages']:,} messages of {measures['threads']:,} training "
        "threads. Rows of features: training messages, ranked by a model that has not seen their thread; a "
        "group is left out by setting it to its mean"
    )
    return [Table(caption, ("Features", *(header for _, header in shown)), rows, strong_rows=(0,))]


def _cell(leg: Mapping[str, Any], name: str) -> str:
    low, high = leg.get("interval", {}).get(name, (None, None)) if name in BOUNDED else (None, None)
    if name.startswith("recall"):
        return score_text({"value": leg[name], "low": low, "high": high})
    bounds = f" ({low:.3f}–{high:.3f})" if low is not None else ""
    return f"{leg[name]:.3f}{bounds}"


def _group_chart(title: str, rows: list[dict[str, Any]]) -> Figure:
    bars = [
        Bar(_range(row), row["recall@5"]["value"], row["recall@5"]["low"], row["recall@5"]["high"], "model")
        for row in rows
    ]
    said = "; ".join(f"{bar.label}: {percent(bar.value)}" for bar in bars)
    return Figure(title, bar_chart(title, f"{said}.", bars, x_range=(0.0, 1.0)))


def _group_table(caption: str, header: str, rows: list[dict[str, Any]]) -> Table:
    def cell(row: dict[str, Any], name: str) -> str:
        value = row[name]
        return f"{value['value']:.3f}" if name == "mrr" else score_text(value)

    names = [(name, title) for name, title in GROUP_MEASURES if name in rows[0]]
    body = tuple((_range(row), f"{row['n']:,}", *(cell(row, name) for name, _ in names)) for row in rows)
    return Table(caption, (header, "n", *(title for _, title in names)), body)


def _range(row: Mapping[str, Any]) -> str:
    first, last = row["from"], row["to"]
    if last is None:
        return f"{first} and more"
    return str(first) if first == last else f"{first}–{last}"


def _ceiling_note(metrics: Mapping[str, Any]) -> str:
    share = metrics.get("oracle_in_context", {}).get("test")
    if share is None or share == 1:
        return ""
    return (
        f"What is asked for is in {percent(share)} of the held-out prompts: no model can find more than that."
    )


def corpora(facts: RunFacts) -> list[Block]:
    """Return blocks about what was read, the number and length of the records, and what was left out."""
    tasks = {name: facts.context[name] for name in TASK_NAMES if name in facts.context}
    if not any("guards" in metrics for metrics in tasks.values()):
        return []
    figures = [
        figure for name, metrics in tasks.items() if (figure := _length_chart(TASK_NAMES[name], metrics))
    ]
    blocks: list[Block] = [_counts(tasks)]
    if figures:
        blocks.append(Columns(tuple(figures)))
    blocks.append(_guards(tasks))
    left_out = [
        (TASK_NAMES[name], _said(reason), f"{count:,}")
        for name, metrics in tasks.items()
        for reason, count in metrics.get("dropped", {}).items()
    ]
    built = [
        (f"{TASK_NAMES[name]}, {split}", _said(what), f"{count:,}")
        for name, metrics in tasks.items()
        for split, found in metrics.get("notes", {}).items()
        for what, count in found.items()
    ]
    warned = [(TASK_NAMES[name], text) for name, task in tasks.items() for text in task.get("warnings", ())]
    tables = []
    if warned:
        tables.append(Table("Warnings", ("Task", "What"), tuple(warned), text_columns=(1,)))
    if left_out:
        tables.append(Table("Left out", ("Task", "Why", "Count"), tuple(left_out), text_columns=(1,)))
    if built:
        tables.append(Table("How records were built", ("Task", "What", "Count"), tuple(built), (1,)))
    return [*blocks, *([Columns(tuple(tables))] if tables else [])]


def _counts(tasks: Mapping[str, Any]) -> Table:
    rows = []
    for name, metrics in tasks.items():
        for split in ("train", "test"):
            if not metrics["records"].get(split):
                continue
            share = metrics.get("oracle_in_context", {}).get(split)
            rows.append(
                (
                    f"{TASK_NAMES[name]}, {split}",
                    f"{metrics['records'][split]:,}",
                    f"{metrics.get('contexts', {}).get(split, 0):,}",
                    percent(share) if share is not None else "",
                )
            )
    return Table("Records", ("Task", "Records", "Contexts", "Answer in the prompt"), tuple(rows))


def _guards(tasks: Mapping[str, Any]) -> Table:
    """Return a table of the guards against leaks, with guards as rows and tasks as columns."""
    searched = [
        (TASK_NAMES[name], metrics["guards"]) for name, metrics in tasks.items() if "guards" in metrics
    ]
    names = {
        "records_searched": "Finished records searched for leaks",
        "exact_duplicates_dropped": "Equal to a held-out one, left out",
        "near_duplicates_dropped": "Nearly a held-out one, left out",
        "test_contexts_in_training_prompts": "Held-out contexts found in training prompts",
    }
    rows = [(title, *(f"{guards.get(key, 0):,}" for _, guards in searched)) for key, title in names.items()]
    # The names of the leaks come from the artifact: a task or a guard can be added without a change here.
    for leak in searched[0][1].get("leaks_dropped", {}):
        cells = (f"{guards.get('leaks_dropped', {}).get(leak, 0):,}" for _, guards in searched)
        rows.insert(-1, (f"Leak: {_said(leak)}, left out", *cells))
    return Table("Guards against leakage", ("Guard", *(title for title, _ in searched)), tuple(rows))


def _length_chart(title: str, metrics: Mapping[str, Any]) -> Figure | None:
    unit = "tokens" if "prompt_tokens" in metrics else "words"
    found = metrics.get(f"prompt_{unit}")
    if not found or not found.get("max"):
        return None
    bounds, counts = found["histogram"]["up_to"], found["histogram"]["counts"]
    # Empty bars at both ends are removed. Those between stay, so the axis keeps its scale.
    full = [i for i, count in enumerate(counts) if count]
    bars = []
    for i in range(full[0], full[-1] + 1):
        low = bounds[i - 1] if i else 0
        label = f"{low}–{bounds[i] - 1}" if bounds[i] is not None else f"{low} and more"
        bars.append(Bar(label, float(counts[i]), kind="model"))
    name = f"Length of the prompts, {title}"
    note = (
        f"{unit.capitalize()}: mean {found['mean']:,.0f}, median {found['p50']:,}, longest {found['max']:,}."
    )
    chart = bar_chart(name, note, bars, value_format=lambda value: f"{value:,.0f}", axis=False)
    return Figure(name, chart, note)


def _said(name: str) -> str:
    return name.replace("_", " ")


def made_questions(facts: RunFacts) -> list[Block]:
    """Return blocks about the questions that a teacher model made: how many, and why others were refused."""
    manifest = facts.manifests.get("make-questions")
    if manifest is None:
        return []
    found = manifest["metrics"]
    asked, trip = found["asked"], found["round_trip"]
    words = (
        f"The teacher {found['teacher']} was asked for {found['documents']['questions_asked']:,} questions, "
        f"of which {found['questions']:,} were accepted, about {found['documents_with_questions']:,} of "
        f"{found['documents']['documents']:,} documents, in "
        f"{asked['answered']:,} answers to {asked['requests']:,} requests "
        f"({asked['prompt_tokens']:,} tokens of "
        f"prompts, {asked['answer_tokens']:,} of answers). They are synthetic."
    )
    kinds = tuple(
        (
            _said(kind),
            f"{count:,}",
            *(percent(trip[kind][measure]) for measure in ("recall@1", "recall@10")),
            f"{trip[kind]['mrr']:.3f}",
        )
        for kind, count in found["kinds"].items()
    )
    counts = {
        "refused": found["refused"],
        "decided by a person": found["decisions"],
        "counted": found["counts"],
        "chunks left out": found["documents"]["left_out"],
        "lost a part of the text": asked.get("shortened", {}),
        "answers that are not whole": {
            name: count for name, count in found["answers"].items() if name != "ok"
        },
        "asked again after": asked["retried"],
        "failed for good": asked["failed"],
    }
    rows = tuple(
        (title, _said(name), f"{count:,}") for title, group in counts.items() for name, count in group.items()
    )
    headers = ("Kind", "Questions", "Recall@1", "Recall@10", "MRR")
    caption = "Made questions; the ranks are those of their own chunk by BM25 (round trip)"
    blocks: list[Block] = [Prose(words)]
    if kinds:
        blocks.append(Table(caption, headers, kinds))
    if rows:
        blocks.append(Table("What did not become a question, and why", ("", "What", "Count"), rows, (1,)))
    return blocks


def records(facts: RunFacts) -> list[Block]:
    """Return blocks that show a few whole training records."""
    examples: list[Example] = []
    for row in facts.samples(SAMPLES):
        context, question = _split(row["input"])
        lines = tuple(Passage(text, "right" if _is_post(text, row["gold"]) else "") for text in context)
        answers = (Answer("instruction", row["instruction"]), Answer("answer", row["output"]))
        examples.append(Example(f"{row['task']}: {row['id']}", lines, question, answers))
    return [Columns(tuple(examples))] if examples else []


def predictions(facts: RunFacts, *, right: bool) -> list[Block]:
    """Return blocks with held-out comments that the shown system answered right or wrong, and all answers."""
    examples = tuple(_judged_example(facts, item) for item in facts.judged if item.right == right)
    return [Columns(examples)] if examples else []


def _judged_example(facts: RunFacts, item: Judged) -> Example:
    row = item.record
    context, question = _split(row["input"])
    shown = facts.shown_system or ""
    given = item.answers.get(shown, "")
    lines = tuple(Passage(text, _line_mark(text, row["gold"], given)) for text in context)
    reference = " or ".join(row["gold"]) or NOT_RETRIEVED
    named = [name for name in (*TRAINED_FIRST, "bm25") if name in item.answers]
    answers = tuple(
        Answer(
            system_name(name), item.answers[name], "right" if means_gold(item.answers[name], row) else "wrong"
        )
        for name in named
    )
    return Example(str(row["id"]), lines, question, (Answer("Right answer", reference), *answers))


def _line_mark(text: str, gold: Sequence[str], given: str) -> Mark:
    if _is_post(text, gold):
        return "right"
    return "wrong" if _is_post(text, [given]) else ""


def _is_post(block: str, answers: Sequence[str]) -> bool:
    """Whether the last line of a context block, which is the label of a post, is one of the answers."""
    return block.rpartition("\n")[2] in answers


def _split(text: str) -> tuple[list[str], str]:
    """Split a prompt into its context blocks (posts, tables, documents) and its question."""
    # The format of the prompts: empty lines separate the blocks, and the question is the last block.
    *context, question = text.split("\n\n")
    return context, question
