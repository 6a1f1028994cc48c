"""Prompts with another context: the question alone, the right texts alone, and another order."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval.prompts.context_variants import VARIANTS, with_context
from retrieval.prompts.templates import qa_input, table_block, tables_input, threads_input


def record(task: str, body: str, ids: list[str], oracles: list[str], **more: Any) -> dict[str, Any]:
    shared = {"id": f"{task}:1", "task": task, "input": body, "context_ids": ids, "oracle_ids": oracles}
    return shared | {"choices": [], "gold": ["x"]} | more


def qa(documents: list[tuple[str, str]], oracles: list[str]) -> dict[str, Any]:
    return record("qa", qa_input(documents, "Why?"), [f"d{n}" for n in range(len(documents))], oracles)


def test_documents_are_numbered_again() -> None:
    whole = qa([("Oven", "hot.\nIt glows."), ("", "cold"), ("Ice", "old")], ["d2", "d0"])
    closed, oracle = (with_context(whole, name, 0) for name in ("closed_book", "oracle_only"))
    assert closed is not None and (closed["input"], closed["context_ids"]) == ("Question: Why?", [])
    assert oracle is not None
    assert oracle["input"] == qa_input([("Oven", "hot.\nIt glows."), ("Ice", "old")], "Why?")
    assert oracle["context_ids"] == ["d0", "d2"]
    # All else is as before, so that the same answers are right.
    assert {k: v for k, v in oracle.items() if k not in ("input", "context_ids")} == {
        k: v for k, v in whole.items() if k not in ("input", "context_ids")
    }


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shuffling_keeps_the_texts(count: int) -> None:
    documents = [(f"t{n}", f"text {n}") for n in range(count)]
    orders = set()
    for seed in range(20):
        found = with_context(qa(documents, []), "shuffled", seed)
        assert found is not None
        order = [int(name[1:]) for name in found["context_ids"]]
        assert sorted(order) == list(range(count))
        assert found["input"] == qa_input([documents[n] for n in order], "Why?")
        assert found == with_context(qa(documents, []), "shuffled", seed)
        orders.add(tuple(order))
    assert len(orders) >= min(count, 3)


def test_posts_keep_their_labels() -> None:
    # Numbered by rank: the post that stands first has the number 2.
    body = threads_input([("#2 Ann", "a"), ("#1 Bob", "b"), ("#3 Cy", "")], "Dan", "c")
    whole = record("threads", body, ["p8", "p7", "p9"], ["p8"], choices=["#1 Bob", "#2 Ann", "#3 Cy", "None"])
    oracle, closed = (with_context(whole, name, 0) for name in ("oracle_only", "closed_book"))
    assert oracle is not None and closed is not None
    assert oracle["input"] == threads_input([("#1 Bob", "b")], "Dan", "c")
    assert (oracle["context_ids"], oracle["choices"]) == (["p8"], whole["choices"])
    assert closed["input"] == "Comment by Dan: c"
    found = {with_context(whole, "shuffled", seed)["input"] for seed in range(30)}  # type: ignore[index]
    assert len(found) == 6 and all("b\n#1 Bob" in text and "a\n#2 Ann" in text for text in found)


def test_tables_and_what_cannot_be_told_apart() -> None:
    body = tables_input([table_block(["a"], [["1"]]), table_block(["b"], [["2"]], "T")], "which?")
    found = with_context(record("tables", body, ["t1", "t2"], ["t2"]), "oracle_only", 0)
    assert found is not None and found["input"] == "Table: T\nb\n2\n\nQuestion: which?"
    # A document with a line like the beginning of the next one, and a prompt without documents.
    ambiguous = qa([("", "x\n[2] y"), ("", "z")], ["d0"])
    foreign = record("qa", "Say hello.", [], [])
    for variant in VARIANTS:
        assert with_context(ambiguous, variant, 0) is None
        assert with_context(foreign, variant, 0) is None
