"""reply@1 of groups of comments, which shows where a system errs.

Each comment is in one group of each kind. The groups of a kind are scored on the same resamples of contexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.evaluation.answer_scores import Prediction, thread_values
from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.retriever_intervals import DISTANCES

Row = Mapping[str, Any]

#: Largest distance of each group, in messages back to the nearest right post, as in the retriever's measures.
DISTANCE_ENDS = tuple(end for _, end in DISTANCES if end is not None)
#: Largest number of messages of the thread, of each group.
THREADS = (10, 50, 200)


def reply_slices(
    predictions: Mapping[str, Mapping[str, Prediction]],
    rankings: Sequence[Row],
    records: Sequence[Row],
    *,
    seed: int,
    resamples: int,
) -> dict[str, list[dict[str, Any]]]:
    """Return reply@1 of every system in groups of comments.

    Args:
        predictions: answers by system and record id.
        rankings: rows of `rankings.parquet` of the scored comments, which all answer a post.
        records: their records.
        seed: seed of the resamples.
        resamples: number of resamples.

    Returns:
        Kind to `[{"group", "n", "systems": {name: {value, low, high, n}}}]`. The kinds are "distance",
        "right_post", "thread_messages", "parents", "in_prompt" and "addressed". A kind of which all comments
        are in one group says nothing new, and is left out.
    """
    shown = {record["id"]: record["oracle_in_context"] for record in records}
    groups = [_groups(row, shown[row["id"]]) for row in rankings]
    intervals = ContextBootstrap.over([row["context_id"] for row in rankings], seed, resamples)
    reply = {name: thread_values(given, rankings)["reply@1"] for name, given in predictions.items()}
    out = {}
    for kind, names in _groups_of_kinds().items():
        of_rows = np.array([found[kind] for found in groups], dtype=object)
        members = {name: (of_rows == name).astype(np.float64) for name in names}
        members = {name: each for name, each in members.items() if each.any()}
        if len(members) > 1:
            out[kind] = [
                {
                    "group": name,
                    "n": int(each.sum()),
                    "systems": {s: intervals.ratio(right * each, each) for s, right in reply.items()},
                }
                for name, each in members.items()
            ]
    return out


def _groups_of_kinds() -> dict[str, list[str]]:
    """Return the groups of each kind, in the order of tables."""
    return {
        "distance": _ranges(DISTANCE_ENDS),
        "right_post": ["opening post", "later post"],
        "thread_messages": _ranges(THREADS),
        "parents": ["one", "several"],
        "in_prompt": ["in the prompt", "not in the prompt"],
        "addressed": ["begins with a name", "no name"],
    }


def _groups(row: Row, in_prompt: bool) -> dict[str, str]:
    return {
        "distance": _range_of(row["distance"], DISTANCE_ENDS),
        "right_post": "opening post" if row["opening_id"] in row["gold_ids"] else "later post",
        "thread_messages": _range_of(row["thread_messages"], THREADS),
        "parents": "one" if len(row["gold_ids"]) == 1 else "several",
        "in_prompt": "in the prompt" if in_prompt else "not in the prompt",
        "addressed": "begins with a name" if row["addressed"] else "no name",
    }


def _ranges(ends: Sequence[int]) -> list[str]:
    """Return names of the ranges up to each of the ends, and above the last."""
    starts = [1, *(end + 1 for end in ends)]
    names = [str(a) if a == b else f"{a}\u2013{b}" for a, b in zip(starts, ends, strict=False)]
    return [*names, f"over {ends[-1]}"]


def _range_of(value: int, ends: Sequence[int]) -> str:
    return _ranges(ends)[int(np.searchsorted(ends, value))]
