"""The command `jora compare`, which sets runs side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any

import typer

from flows.commands.common_options import Set, load, print_json
from flows.commands.print_pipeline import print_table
from flows.engine.errors import one_line_os_errors
from flows.engine.shared.shared_store import open_store
from flows.housekeeping.stored_runs import find_run, read_contents
from flows.report.comparison.compared_runs import ComparedRun, Comparison
from flows.report.comparison.comparison_page import (
    comparison_page,
    difference_headers,
    difference_row,
    settings_lines,
)
from flows.report.svg_charts import PALETTE
from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError

LONGEST_QUESTION = 200  # characters in the terminal; the page has the whole prompt


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...")],
    config: Annotated[Path | None, typer.Option("--config", "-c")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE")] = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Set runs side by side, with their differences.

    Shows which settings and input files differ, each measure with its paired difference to the first run and
    a 95 % interval, the same by kinds of records, and ten records that one run answers rightly and the other
    wrongly. The page also has learning curves and whole prompts.

    \\b
    Examples:
      jora compare 20260727-0301 latest
      jora compare 20260726 20260727 -c my.yaml --html compare.html

    Args:
        runs: Beginnings of the runs' ids, or `latest`. The others are compared with the first.
        config: YAML file, whose store has the runs; without it, ./jora.yaml, else a checkout's sample.
        html: Also write a page.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    if len(runs) < 2:
        raise InputError("compare: give at least two runs; `jora runs` lists them")
    if len(runs) > len(PALETTE):
        raise InputError(f"compare: {len(runs)} runs are given; compare at most {len(PALETTE)}")
    settings = load(config, overrides)
    store = open_store(settings)
    contents = read_contents(store)
    found = [find_run(contents, run) for run in runs]
    ids = [run.record.id for run in found]
    if len(set(ids)) < len(ids):
        raise InputError(f"compare: a run is given twice: {', '.join(ids)}")
    compared = tuple(
        ComparedRun.read(name, run, store) for name, run in zip(ascii_uppercase, found, strict=False)
    )
    comparison = Comparison(compared, settings.seed, settings.evaluate.bootstrap_samples)
    if html is not None:
        with one_line_os_errors("write", html):
            write_bytes(html, comparison_page(comparison).encode())
    if as_json:
        print_json(_as_json(comparison))
        return
    _print(comparison)
    if html is not None:
        print(f"page: {html}")


def _print(comparison: Comparison) -> None:
    for run in comparison.runs:
        record = run.run.record
        print(f"{run.name} = {record.id} {record.project} {record.started_by}".rstrip())
    print()
    rows = settings_lines(comparison)
    if rows:
        print_table(("setting", *(run.name for run in comparison.runs)), rows)
    else:
        print("no setting and no input file differs")
    if comparison.code_files:
        print(f"the code differs too: {comparison.code_files} source files")
    for other in comparison.others:
        print(f"\n{other.name} against {comparison.first.name}:")
        headers = difference_headers(comparison, other)
        print_table(headers, [difference_row(one) for one in comparison.differences[other.name]])
        if same := comparison.unchanged[other.name]:
            print(f"the same values in both: {', '.join(same)}")
        print("paired by record, 95 % intervals by context; p corrected for the rows of a measure (Holm)")
        slices = comparison.slices[other.name]
        if slices:
            print()
            print_table(("records", *headers[1:]), [difference_row(one) for one in slices])
        for task, (lost, won) in comparison.counts_changed[other.name].items():
            first = comparison.first.name
            print(f"\n{task}: {lost:,} records only {first} answers rightly, {won:,} only {other.name}")
        for one in comparison.changed[other.name]:
            question = " ".join(str(one.record["input"]).rpartition("\n\n")[2].split())
            print(f"\n{one.task} {one.record['id']}: {_cut(question)}")
            print(f"  right answer: {' or '.join(one.record['gold']) or '(not in the prompt)'}")
            for name, answer in one.answers.items():
                print(f"  {name}, {'right' if name in one.right else 'wrong'}: {_cut(answer)}")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_QUESTION else f"{text[: LONGEST_QUESTION - 3]}..."


def _as_json(comparison: Comparison) -> dict[str, Any]:
    names = [run.name for run in comparison.runs]
    return {
        "runs": {run.name: run.run.record.id for run in comparison.runs},
        "settings": {name: dict(zip(names, values, strict=True)) for name, values in comparison.settings},
        "inputs": {path: dict(zip(names, values, strict=True)) for path, values in comparison.inputs},
        "code_files": comparison.code_files,
        "against_the_first": {
            other.name: {
                "differences": [asdict(one) for one in comparison.differences[other.name]],
                "unchanged": comparison.unchanged[other.name],
                "slices": [asdict(one) for one in comparison.slices[other.name]],
                "only_first_and_only_other_right": comparison.counts_changed[other.name],
                "changed": [asdict(one) for one in comparison.changed[other.name]],
            }
            for other in comparison.others
        },
    }
