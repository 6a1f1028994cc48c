"""Measures of retrieval against trec_eval (through ir_measures), intervals, groups, kept examples."""

from __future__ import annotations

from typing import Any

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evaluation import retriever_intervals
from retrieval.evaluation.context_bootstrap import ContextBootstrap
from retrieval.evaluation.retriever_ranks import DEPTHS, RankTally
from retrieval.evaluation.task_report import TaskReport, lengths


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """(ranking, gold that is in it, how much gold is no candidate), at least one gold."""
    n = draw(st.integers(1, 40))
    ranking = draw(st.permutations(range(n)))[: draw(st.integers(1, n))]
    gold = draw(st.sets(st.sampled_from(range(n)), max_size=13))
    return list(ranking), sorted(gold), draw(st.integers(0 if gold else 1, 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(judged(), min_size=1, max_size=6))
def test_measures_equal_trec_evals(cases: list[tuple[list[int], list[int], int]]) -> None:
    tally = RankTally()
    qrels: list[ir_measures.Qrel] = []
    run: list[ir_measures.ScoredDoc] = []
    for number, (ranking, gold, absent) in enumerate(cases):
        tally.add(np.array(ranking), np.array(gold, dtype=np.int64), absent)
        name = f"{number:03d}"
        qrels += [ir_measures.Qrel(name, str(place), 1) for place in gold]
        qrels += [ir_measures.Qrel(name, f"absent {i}", 1) for i in range(absent)]
        run += [ir_measures.ScoredDoc(name, str(p), 100.0 - rank) for rank, p in enumerate(ranking)]
    ours = tally.measures()
    wanted = {
        "mrr": ir_measures.RR,
        "ndcg@10": ir_measures.nDCG @ 10,
        **{f"recall@{k}": ir_measures.R @ k for k in DEPTHS},
        **{f"hit@{k}": ir_measures.Success @ k for k in DEPTHS},
    }
    assert set(ours) == set(wanted)
    for name, measure in wanted.items():
        theirs = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}
        expected = [theirs[f"{number:03d}"] for number in range(len(cases))]
        np.testing.assert_allclose(ours[name], expected, atol=1e-9, err_msg=name)


def test_intervals_are_clustered_and_seeded() -> None:
    rng = np.random.default_rng(0)
    # Forty contexts of 25 equal answers: as uncertain as forty answers, not as a thousand.
    values = np.repeat(rng.random(40) < 0.5, 25).astype(float)[:, None]
    clustered = retriever_intervals.intervals(values, [str(i // 25) for i in range(1000)])
    alone = retriever_intervals.intervals(values, [str(i) for i in range(1000)])
    width, narrow = ((high or 0.0) - (low or 0.0) for ((low, high),) in (clustered, alone))
    assert width == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.15)
    assert narrow == pytest.approx(2 * 1.96 * 0.5 / 1000**0.5, rel=0.15)
    again = retriever_intervals.intervals(values, [str(i // 25) for i in range(1000)])
    assert again == clustered
    # As the scores of answers have them; all right is no certainty, and one context has no interval.
    contexts = [str(i // 25) for i in range(1000)]
    ((low, high),) = clustered
    found = ContextBootstrap.over(contexts, 0, 1000).ratio(values[:, 0], np.ones(1000))
    assert (low, high) == pytest.approx((found["low"], found["high"]), abs=0.01)
    ((low, high),) = retriever_intervals.intervals(np.ones((5, 1)), list("aabbc"))
    assert low is not None and low < 0.6 and high == 1.0
    assert retriever_intervals.intervals(np.ones((5, 1)), list("aaaaa")) == [(None, None)]


def test_groups_by_distance_and_length() -> None:
    report = TaskReport()
    cases = [(1, 3, [0]), (1, 30, [1]), (4, 3, [0]), (60, 7, [2])]  # distance, words, ranking's gold place
    for number, (distance, words, gold) in enumerate(cases):
        report.add_question("test", f"c{number % 3}", "word " * words, distance)
        for leg in ("bm25", "fused"):
            report.add_ranking("test", leg, np.arange(20), np.array(gold))
    summary = report.summary()
    groups = summary["retrieval_groups"]
    assert [(row["from"], row["to"], row["n"]) for row in groups["by_distance"]] == [
        (1, 1, 2),
        (3, 5, 1),
        (51, None, 1),
    ]
    assert [row["recall@1"]["value"] for row in groups["by_distance"]] == [0.5, 1.0, 0.0]
    assert [(row["from"], row["n"]) for row in groups["by_length"]] == [(0, 2), (6, 1), (21, 1)]
    fused = summary["retrieval"]["test"]["fused"]
    low, high = fused["interval"]["recall@1"]
    assert low <= fused["recall@1"] == 0.5 <= high


def record(number: int, split: str, task: str = "qa", **fields: Any) -> dict[str, Any]:
    row = {"id": f"r{number}", "split": split, "task": task, "context_id": f"c{number}"}
    row |= {"context_ids": [f"c{number}", "d"], "oracle_ids": [f"c{number}"], "oracle_in_context": True}
    return row | {"instruction": "i", "input": "a b\nc", "output": "o", "gold": ["o"]} | fields


def test_a_test_context_in_a_training_prompt_is_reported() -> None:
    report = TaskReport()
    report.add_record(record(1, "train"))
    report.add_record(record(2, "test"))
    assert report.summary()["guards"]["test_contexts_in_training_prompts"] == 0
    report.add_record(record(3, "train", context_ids=["c3", "c2"]))
    assert report.summary()["guards"]["test_contexts_in_training_prompts"] == 1


def test_the_examples_do_not_depend_on_the_order() -> None:
    one, other = TaskReport(), TaskReport()
    for number in range(50):
        one.add_record(record(number, "train"), tokens=number)
        other.add_record(record(49 - number, "train"))
    first, second = one.summary(), other.summary()
    assert first["examples"] == second["examples"] and len(first["examples"]) == 10
    assert first["prompt_tokens"]["max"] == 49 and "prompt_tokens" not in second


def test_lengths_of_nothing() -> None:
    assert lengths([])["max"] == 0
    assert lengths([5, 33, 5000])["histogram"]["counts"] == [1, 1, 0, 0, 0, 0, 0, 0, 1]
