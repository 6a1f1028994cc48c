"""The sections and the page of a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows.report.blocks import (
    Answer,
    Block,
    Columns,
    Example,
    Fact,
    Facts,
    Figure,
    Passage,
    Prose,
    Section,
    Table,
)
from flows.report.comparison.compared_runs import ChangedRecord, ComparedRun, Comparison, Difference
from flows.report.page import render_page
from flows.report.sections import PHASE_NAMES
from flows.report.svg_charts import Series, line_chart, smooth, thin
from flows.report.wording import percent, points, probability, system_name, verdict_text
from retrieval.text.labels import plural

DIFFERENCE_HEADERS = (
    "System",
    "Measure",
    "n",
    "{first}",
    "{other}",
    "{other} − {first}, points",
    "p (Holm)",
    "Verdict",
)


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison as HTML."""
    names = ", ".join(f"{run.name} = {run.run.record.id}" for run in comparison.runs)
    return render_page("Runs compared", names, comparison_sections(comparison))


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Return the sections that are not empty, in reading order."""
    found = (
        ("runs", "Runs", _runs(comparison)),
        ("settings", "What differs", _settings(comparison)),
        ("measures", "Measures", _measures(comparison)),
        ("curves", "Learning curves", _curves(comparison)),
        ("slices", "Slices", _slices(comparison)),
        ("changed", "Records that changed sides", _changed(comparison)),
    )
    return [Section(name, title, tuple(blocks)) for name, title, blocks in found if blocks]


def settings_lines(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a row for each setting and input file that differs: its name, and its value in each run."""
    rows: list[tuple[str, ...]] = [(name, *values) for name, values in comparison.settings]
    return rows + [(f"input {path}", *values) for path, values in comparison.inputs]


def difference_row(one: Difference) -> tuple[str, ...]:
    """Return the cells of a difference, below `DIFFERENCE_HEADERS`."""
    cells = (one.system, f"{one.task}: {one.measure}", f"{one.records:,}")
    if one.paired is None or one.first is None or one.other is None:
        return (*cells, "", "", "", "", "no record in common")
    shares = (percent(one.first), percent(one.other))
    return (*cells, *shares, points(one.paired), probability(one.paired["p_holm"]), verdict_text(one.paired))


def difference_headers(comparison: Comparison, other: ComparedRun) -> tuple[str, ...]:
    """Return the headers of a table of differences, with the names of the two runs."""
    first = comparison.first.name
    return tuple(header.format(first=first, other=other.name) for header in DIFFERENCE_HEADERS)


def _runs(comparison: Comparison) -> list[Block]:
    rows = tuple(
        (
            run.name,
            f"`{run.run.record.id}`",
            run.run.record.project or "-",
            run.run.record.started[:16].replace("T", " "),
            run.run.record.result,
            run.run.record.started_by or "not recorded",
        )
        for run in comparison.runs
    )
    headers = ("", "Run", "Project", "Started (UTC)", "Result", "Started by")
    facts = [
        Fact(
            f"{other.name} − {comparison.first.name}, {one.measure} of {system_name(one.system)}",
            points(one.paired).partition(" ")[0] + " points",
            verdict_text(one.paired),
        )
        for other in comparison.others
        for one in comparison.differences[other.name]
        if one.system == comparison.first.last_system and one.paired is not None
    ]
    return [
        Table("", headers, rows, text_columns=(1, 2, 3, 4, 5)),
        *([Facts(tuple(facts[:6]))] if facts else []),
    ]


def _settings(comparison: Comparison) -> list[Block]:
    rows = tuple(settings_lines(comparison))
    names = tuple(run.name for run in comparison.runs)
    blocks: list[Block] = []
    if rows:
        columns = tuple(range(1, len(names) + 1))
        blocks.append(Table("", ("Setting", *names), rows, text_columns=columns))
    else:
        blocks.append(Prose("No setting and no input file differs."))
    if comparison.code_files:
        blocks.append(Prose(f"The code differs too: {plural(comparison.code_files, 'source file')}."))
    return blocks


def _measures(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = [
        Prose(
            "Differences are paired: over the records that both runs have answered. Intervals are 95 %, from "
            "resampling whole contexts; p is corrected for the rows of a measure (Holm)."
        )
    ]
    for other in comparison.others:
        if same := comparison.unchanged[other.name]:
            names = ", ".join(map(system_name, same))
            blocks.append(
                Prose(f"{comparison.first.name} and {other.name} have the same values of: {names}.")
            )
    return blocks + _tables(comparison, comparison.differences, named=True)


def _slices(comparison: Comparison) -> list[Block]:
    return _tables(comparison, comparison.slices, named=False)


def _tables(
    comparison: Comparison, differences: Mapping[str, Sequence[Difference]], named: bool
) -> list[Block]:
    blocks: list[Block] = []
    for other in comparison.others:
        rows = [difference_row(one) for one in differences[other.name]]
        if not rows:
            continue
        shown = tuple((system_name(row[0]) if named else row[0], *row[1:]) for row in rows)
        headers = difference_headers(comparison, other)
        headers = headers if named else ("Records", *headers[1:])
        caption = f"{other.name} against {comparison.first.name}"
        blocks.append(Table(caption, headers, shown, text_columns=(1, 7)))
    return blocks


def _curves(comparison: Comparison) -> list[Block]:
    figures: list[Figure] = []
    for stage, title in PHASE_NAMES.items():
        lines: list[Series] = []
        for run in comparison.runs:
            steps = run.training(stage)
            raw = tuple((float(row["step"]), float(row["loss"])) for row in steps)
            held_out = tuple(
                (float(row["step"]), float(row["validation_loss"]))
                for row in steps
                if "validation_loss" in row
            )
            if raw:
                lines.append(Series(run.name, thin(smooth(raw))))
            if held_out:
                lines.append(Series(f"{run.name}, held out", held_out))
        if lines:
            ends = ", ".join(f"{line.name} {line.points[-1][1]:.3f}" for line in lines)
            words = f"Loss at the end: {ends}."
            chart = line_chart(f"{title}, loss", words, lines, "step", "loss per answer token")
            figures.append(Figure(f"{title}, loss (moving mean)", chart, words))
    return [Columns(tuple(figures))] if figures else []


def _changed(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for other in comparison.others:
        first = comparison.first.name
        counts = comparison.counts_changed[other.name]
        said = "; ".join(
            f"{task}: {plural(lost, 'record')} only {first} answers rightly, {won:,} only {other.name}"
            for task, (lost, won) in counts.items()
        )
        found = comparison.changed[other.name]
        if not found:
            continue
        blocks += [
            Prose(f"{said}. Some of them, drawn by a digest of their ids:"),
            Columns(tuple(_example(one) for one in found)),
        ]
    return blocks


def _example(one: ChangedRecord) -> Example:
    *context, question = str(one.record["input"]).split("\n\n")
    gold: Sequence[str] = one.record["gold"]
    wrong = [answer for name, answer in one.answers.items() if name not in one.right]
    passages = tuple(
        Passage(text, "right" if _label(text) in gold else "wrong" if _label(text) in wrong else "")
        for text in context
    )
    answers = tuple(
        Answer(name, answer or "(none)", "right" if name in one.right else "wrong")
        for name, answer in one.answers.items()
    )
    reference = Answer("Right answer", " or ".join(gold) or "(not in the prompt)")
    return Example(f"{one.task}: {one.record['id']}", passages, question, (reference, *answers))


def _label(text: str) -> str:
    """Return the last line of a context block, which is the label of a post."""
    return text.rpartition("\n")[2]
