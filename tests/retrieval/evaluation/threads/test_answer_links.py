"""Links of a system's answers, the threshold of a second parent, and annotation files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_core.base.errors import InputError
from retrieval.evaluation.answer_scores import Prediction, prediction_from_answer
from retrieval.evaluation.measures.links import annotated_links
from retrieval.evaluation.threads.annotation_files import write_annotations, write_links
from retrieval.evaluation.threads.answer_links import answer_links, second_parent_threshold, second_parents
from retrieval.prompts.templates import NO_POST

ROWS: list[dict[str, Any]] = [
    {"context_id": "x", "id": f"threads:x:{n}", "post_id": f"p{n}", "number": 10 + n, "parents": [10]}
    for n in range(4)
] + [{"context_id": "x", "id": "", "post_id": "", "number": 20, "parents": [20]}]


def test_an_answer_without_a_post_is_a_start() -> None:
    answers = {
        "threads:x:1": Prediction("p0", "Ann"),
        "threads:x:2": prediction_from_answer(NO_POST, {"context_ids": ["p0", "p1"]}),
        "threads:x:3": Prediction("p2", "Ann"),
    }
    second = {"threads:x:3": Prediction("p1", "Bob")}
    # Message 0 and the line of the system were not asked.
    assert answer_links(ROWS, answers, second) == {
        "x": {(10, 10), (11, 10), (12, 12), (13, 12), (13, 11), (20, 20)}
    }


def record(name: str, oracles: list[str]) -> dict[str, Any]:
    choices = ["#1 Ann", "#2 Bob", NO_POST]
    return {"id": name, "context_ids": ["p1", "p2"], "choices": choices, "oracle_ids": oracles}


def answer(name: str, *shares: float) -> dict[str, Any]:
    return {"id": name, "choice_logprobs": [math.log(share) for share in shares]}


def test_a_second_parent_needs_its_probability_and_two_posts() -> None:
    records = [record(name, []) for name in "abc"]
    # The shares are among the choices, so a third of each changes nothing.
    rows = [answer("a", 0.2, 0.1, 0.03), answer("b", 0.6, 0.3, 0.1), answer("c", 0.2, 0.3, 0.5)]
    assert second_parents(records, rows, 0.3) == {
        "a": Prediction("p2", "Bob"),
        "b": Prediction("p2", "Bob"),
    }
    assert second_parents(records, rows, 0.301) == {"a": Prediction("p2", "Bob")}


shares = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=3, max_size=3)
gold = st.sampled_from([[], ["p1"], ["p2"], ["p1", "p2"], ["p9"]])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(shares, gold), min_size=1, max_size=8))
def test_the_threshold_has_the_best_f1(cases: list[tuple[list[float], list[str]]]) -> None:
    records = [record(str(n), oracles) for n, (_, oracles) in enumerate(cases)]
    rows = [answer(str(n), *given) for n, (given, _) in enumerate(cases)]

    def f1(threshold: float) -> float:
        """From the links themselves, as sets."""
        more = second_parents(records, rows, threshold)
        right, said = set(), set()
        for each, row in zip(records, rows, strict=True):
            right |= {(each["id"], parent) for parent in each["oracle_ids"] or ["start"]}
            best = max(range(3), key=lambda place: (row["choice_logprobs"][place], -place))
            first = prediction_from_answer(each["choices"][best], each)
            said |= {(each["id"], first.post_id or "start")}
            said |= {(each["id"], more[each["id"]].post_id)} if each["id"] in more else set()
        return 2 * len(right & said) / (len(right) + len(said))

    found = second_parent_threshold(records, rows)
    best = max(f1(step / 1000) for step in range(0, 1002))
    assert f1(2.0 if found is None else found) == pytest.approx(best)
    assert found is None or f1(found) > f1(2.0)


def test_annotations_are_read_as_they_were_written(tmp_path: Path) -> None:
    links = {"dev/2004-11-15_03": {(5, 5), (6, 5), (7, 6), (7, 5)}, "b": {(1, 1)}}
    write_links(tmp_path / "links.parquet", {"annotated": links, "base": {"b": {(1, 0)}}})
    assert write_annotations(tmp_path / "links.parquet", tmp_path / "out") == 3
    text = (tmp_path / "out" / "annotated" / "2004-11-15_03.annotation.txt").read_text()
    assert (
        text.splitlines()[0] == "5 5 -" and annotated_links(text.splitlines()) == links["dev/2004-11-15_03"]
    )
    assert (tmp_path / "out" / "base" / "b.annotation.txt").read_text() == "0 1 -\n"
    with pytest.raises(InputError, match="has no links"):
        write_annotations(tmp_path / "none.parquet", tmp_path)
    write_links(tmp_path / "two.parquet", {"base": {"a/x": {(1, 1)}, "b/x": {(1, 1)}}})
    with pytest.raises(InputError, match="two held-out threads, a/x and b/x"):
        write_annotations(tmp_path / "two.parquet", tmp_path)
    write_links(tmp_path / "empty.parquet", {})
    assert write_annotations(tmp_path / "empty.parquet", tmp_path) == 0
