"""A limited number of held-out records to score: whole contexts, drawn by a seed.

Records whose prompts begin with the same text are answered in one pass over this text. A draw of single
records would leave each of them nearly alone with its context, and a limit would then save little time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.text.labels import plural
from retrieval.text.normalize import seeded_hash

Row = Mapping[str, Any]

#: From this many contexts on, an interval holds the truth as often as it says (docs/evaluation.md).
LEAST_CONTEXTS = 10


def draw_records(rows: Sequence[Row], most: int | None, seed: int) -> list[Row]:
    """Return at most `most` of the rows, in their order: whole runs of records that share their beginning.

    Runs that no longer fit are left out, and smaller ones follow. If already the first run is too long, its
    first records are taken.

    Args:
        rows: records of one task.
        most: largest number of rows; None for all.
        seed: seed of the draw.
    """
    if most is None or len(rows) <= most:
        return list(rows)
    runs: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        # The first paragraph: the first post of a window, a table, the documents of a question.
        runs.setdefault((row["context_id"], row["input"].partition("\n\n")[0]), []).append(number)
    # By a hash and not by a generator: a context added to the corpus changes only whether it is drawn itself,
    # so scores of two builds stay comparable. The names break ties.
    drawn: set[int] = set()
    for name in sorted(runs, key=lambda name: (seeded_hash(seed, "evaluated", *name), name)):
        if not drawn or len(drawn) + len(runs[name]) <= most:
            drawn.update(runs[name][:most])
    return [rows[number] for number in sorted(drawn)]


def draw_counts(rows: Sequence[Row], drawn: Sequence[Row]) -> dict[str, int]:
    """Return what was drawn from what: numbers of records and of contexts.

    Args:
        rows: all held-out records of a task.
        drawn: the records to score.
    """
    return {
        "records": len(drawn),
        "of_records": len(rows),
        "contexts": len({row["context_id"] for row in drawn}),
        "of_contexts": len({row["context_id"] for row in rows}),
    }


def few_contexts(contexts: int) -> str:
    """Return a warning where records are of too few contexts for an interval to be trusted; else no text."""
    if contexts >= LEAST_CONTEXTS:
        return ""
    return f"only {plural(contexts, 'context')}, so the interval is not to be trusted"


def few_contexts_of_tasks(drawn: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a warning for each task whose scores are of too few contexts.

    Args:
        drawn: `draw_counts` of each task, as `metrics.json` of an evaluation has them.
    """
    warnings = {task: few_contexts(counts["contexts"]) for task, counts in drawn.items()}
    return [
        f"Held-out records of {task}: {warning}. This is so for each of their scores."
        for task, warning in warnings.items()
        if warning
    ]
