"""Blocks about what the scores prove: systems against each other, and how sure the models are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.report.blocks import Block, Columns, Figure, Prose, Table
from flows.report.facts import TRAINED_FIRST, Row, RunFacts
from flows.report.svg_charts import Series, line_chart
from flows.report.wording import percent, points, probability, score_text, system_name, verdict_text
from retrieval.evaluation.comparisons import judged

# The measure by which systems are compared, of each kind of answers, with its name.
HEADLINES = {
    "reply@1": "the right post",
    "denotation_accuracy": "denotation accuracy",
    "f1": "F1 of words",
}
# The system of the most trained model and the learned fusion, as `retrieval.tasks.threads.scoring` names it.
TOGETHER = "model_and_learned"
_HEADERS = ("Difference in points", "p, corrected", "Right alone", "McNemar's p", "Verdict")


def comparisons(facts: RunFacts) -> list[Block]:
    """Return a table for each kind of answers, of the shown system against each other one."""
    return [
        Table(
            f"{system_name(system)} against each other system: {HEADLINES[measure]}",
            ("Against", *_HEADERS),
            tuple(
                (
                    system_name(rival),
                    points(row),
                    probability(row["p_holm"]),
                    f"{row['only_one']:,} and {row['only_other']:,}" if "only_one" in row else "",
                    probability(row["mcnemar_p"]) if "mcnemar_p" in row else "",
                    verdict_text(row),
                )
                for rival, row in rows.items()
            ),
            text_columns=(5,),
        )
        for measure, system, rows in headline_comparisons(facts.evaluation, facts.shown_system)
    ]


def calibration(facts: RunFacts) -> list[Block]:
    """Return charts and a table of each model's calibration and of the accuracy of its surest choices."""
    given = facts.evaluation.get("calibration", {})
    systems = [name for name in reversed(TRAINED_FIRST) if given.get(name, {}).get("n")]
    # Systems that this module does not know still get their lines.
    systems += [name for name in given if name not in systems and given[name]["n"]]
    if not systems:
        return []
    curves = [
        Series(system_name(name), tuple((row["probability"], row["accuracy"]) for row in given[name]["bins"]))
        for name in systems
    ]
    surest = [
        Series(system_name(name), tuple((row["share"], row["accuracy"]) for row in given[name]["selective"]))
        for name in systems
    ]
    errors = "; ".join(
        f"{system_name(name)} {percent(given[name]['expected_calibration_error'])}" for name in systems
    )
    halves = "; ".join(
        f"{system_name(name)} {percent(_of_surest(given[name], 0.5)['accuracy'])}" for name in systems
    )
    curve, selective = "Calibration of the choices", "Accuracy of the surest choices"
    figures = (
        Figure(
            curve,
            line_chart(
                curve,
                f"Expected calibration error: {errors}.",
                [Series("as sure as right", ((0.0, 0.0), (1.0, 1.0)), raw=True), *curves],
                "mean probability of the choice, in bins of 0.1",
                "share of right choices",
                y_range=(0.0, 1.0),
            ),
            "Below the thin line, a model is surer than it is right.",
        ),
        Figure(
            selective,
            line_chart(
                selective,
                f"Right among the surest half: {halves}.",
                surest,
                "share of the comments that are answered, the surest first",
                "share of right choices",
                y_range=(0.0, 1.0),
            ),
        ),
    )
    shares = (0.1, 0.5, 1.0)
    rows = tuple(
        (
            system_name(name),
            f"{given[name]['n']:,}",
            percent(given[name]["expected_calibration_error"]),
            *(percent(_of_surest(given[name], share)["accuracy"]) for share in shares),
        )
        for name in systems
    )
    headers = ("System", "Choices", "Expected calibration error", "Surest 10 %", "Surest 50 %", "All")
    return [Columns(figures), Table("Right choices among the surest ones", headers, rows)]


def _of_surest(found: Mapping[str, Any], share: float) -> Mapping[str, Any]:
    return next(row for row in found["selective"] if row["share"] == share)


def seeds(facts: RunFacts) -> list[Block]:
    """Return blocks with the means over training seeds and the comparisons of these means."""
    found = facts.json("compare-seeds", "seeds.json")
    if not found:
        return []
    numbers = ", ".join(map(str, found["seeds"]))
    blocks: list[Block] = [
        Prose(
            f"Each phase was trained with the seeds {numbers}; the model shown above and exported is that of "
            f"the first. Intervals hold other contexts and other seeds. All measures are in `seeds.json`."
        )
    ]
    for measure, means, compared in headline_seeds(found):
        rows = tuple(
            (
                system_name(name),
                score_text(mean),
                ", ".join(percent(value) for value in mean["by_seed"]),
                f"{100 * mean['spread']:.1f}",
            )
            for name, mean in means.items()
        )
        headers = ("System", "Mean (95 % interval)", "With each seed", "Spread in points")
        blocks.append(Table(HEADLINES[measure].capitalize(), headers, rows))
        if not compared:
            continue
        blocks.append(
            Table(
                f"{system_name(compared[0]['one'])} against each other system, over all seeds",
                ("Against", "Difference in points", "p, corrected", "Verdict"),
                tuple(
                    (system_name(row["other"]), points(row), probability(row["p_holm"]), verdict_text(row))
                    for row in compared
                ),
                text_columns=(3,),
            )
        )
    return blocks


def headline_seeds(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Row], Sequence[Row]]]:
    """Return, for each kind of answers, the measure, each system's mean over seeds, and the comparisons.

    Args:
        found: content of `seeds.json`.
    """
    for measures in found["tasks"].values():
        for measure in HEADLINES:
            if measure in measures:
                yield measure, measures[measure]["systems"], measures[measure]["comparisons"]


def headline_comparisons(
    evaluation: Mapping[str, Any], system: str | None
) -> Iterator[tuple[str, str, dict[str, Row]]]:
    """Return, for each kind of answers, the measure, the system, and its comparison with each other system.

    Args:
        evaluation: content of the evaluation's `metrics.json`.
        system: name of the compared system; None: nothing is returned.
    """
    for tables in evaluation.get("comparisons", {}).values():
        for measure in HEADLINES:
            rows = against(tables.get(measure, ()), system)
            if rows and system:
                yield measure, system, rows


def combined_differences(evaluation: Mapping[str, Any]) -> dict[str, Row]:
    """Return how model and learned fusion together compare with each alone, by reply@1; empty without both.

    Args:
        evaluation: content of the evaluation's `metrics.json`.
    """
    combined = evaluation.get("combined")
    rows = evaluation.get("comparisons", {}).get("threads", {}).get("reply@1", ())
    rivals = against(rows, TOGETHER) if combined else {}
    return {name: rivals[name] for name in ((combined or {}).get("system"), "learned") if name in rivals}


def against(rows: Sequence[Row], system: str | None) -> dict[str, Row]:
    """Return the comparisons of one system with the others, by the name of the other, seen from the system.

    p is corrected for these comparisons, which are all that is shown, and not for every two systems: among
    all pairs of ten systems, ten contexts could prove no difference at all.

    Args:
        rows: comparisons of every two systems by one measure (`retrieval.evaluation.comparisons`).
        system: name of the system.
    """
    mine = {row["other"]: row for row in rows if row["one"] == system}
    theirs = {row["one"]: _turned(row) for row in rows if row["other"] == system}
    shown = {**mine, **theirs}
    return dict(zip(shown, judged(list(shown.values())), strict=True))


def _turned(row: Row) -> Row:
    """Return a comparison seen from its other system."""
    turned = row | {"one": row["other"], "other": row["one"]}
    if row["value"] is not None:
        turned["value"] = -row["value"]
    if row["low"] is not None:
        turned |= {"low": -row["high"], "high": -row["low"]}
    if "only_one" in row:
        turned |= {"only_one": row["only_other"], "only_other": row["only_one"]}
    return turned
