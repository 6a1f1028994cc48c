"""Which examples share a prefix, how groups are split, and the rows that they are packed into."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_core.data.batches import BatchStream
from jora_core.data.examples import load_groups
from jora_core.data.shared_context import Branch, Example, Group, Piece, layout, share_contexts
from jora_core.data.tokenizer import load_tokenizer
from tests.jora_core.data.test_examples import spec
from tests.jora_core.trees import listed


def test_the_order_of_the_file_does_not_decide_what_is_shared(tiny_model, alpaca_rows, write_rows, tmp_path):
    rows = alpaca_rows(contexts=9, questions=4)
    # Two prompts of one context that begin alike only as far as the instruction goes, in turn.
    for number, row in enumerate(rows[:4]):
        row["input"] = f"{number % 2} way of asking\n" + row["input"]
    tokenizer = load_tokenizer(tiny_model)
    whole = load_groups(spec(write_rows(tmp_path / "a.parquet", rows)), tokenizer)
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    found = load_groups(spec(write_rows(tmp_path / "b.parquet", mixed)), tokenizer)
    assert len(whole.train) == 9 and whole.counts["slots"] == found.counts["slots"]
    assert {frozenset(g.ids) for g in whole.train} == {frozenset(g.ids) for g in found.train}
    assert whole.train[0].ids == ("c0-q0", "c0-q2", "c0-q1", "c0-q3"), "the leaves of a tree, depth first"
    place = {row["id"]: i for i, row in enumerate(mixed)}
    first = [min(place[id] for id in g.ids) for g in found.train]
    assert first == sorted(first), "groups come in the order of their first examples"
    assert sorted(map(str, chains_of(found))) == sorted(map(str, chains_of(whole)))


def chains_of(data) -> list[Any]:
    return [chain for group in data.train for chain in listed(group)]


def test_a_long_run_of_long_suffixes_is_shared():
    """Blocks of other suffixes are skipped, so that a long row is no reason to compute a prefix again."""
    prompts = [np.r_[np.arange(200), 1000 * i + np.arange(200)] for i in range(1, 17)]
    answer = np.asarray([7, 1], np.int32)
    examples = [Example(str(i), "c", p.astype(np.int32), answer) for i, p in enumerate(prompts)]
    (group,) = share_contexts(examples, 4096)
    assert group.slots == 200 + 16 * 201 and group.slots_apart == 16 * 401


def test_shared_groups_fill_long_rows():
    sizes = np.random.default_rng(0).integers(100, 2200, 60)
    groups = [
        Group((str(i),), (Branch(0, _piece(n + 30)), Branch(n, _piece(30)))) for i, n in enumerate(sizes)
    ]
    slots = sum(g.slots for g in groups)
    stream = BatchStream(groups, 4096, seed=0)
    assert stream.row_lengths == (4096,)
    assert slots > 0.93 * sum(stream.build(plan).tokens.size for plan in stream.plan(0))
    alone = [Group(g.ids, g.branches[:1]) for g in groups]
    assert len(BatchStream(alone, 4096, seed=0).row_lengths) == 3
    two = BatchStream(groups, 4096, seed=0, blocks=2)
    assert all(
        two.build(plan).tokens.shape == (2, length) for plan in two.plan(0) for length in [plan.length]
    )


def _piece(length: int) -> Piece:
    return Piece(np.arange(length), np.r_[np.zeros(length - 1), 1].astype(np.float32))


def test_groups_split_beyond_the_budget():
    prompt = np.arange(40, dtype=np.int32)
    examples = [
        Example(str(i), "c", np.append(prompt, 100 + i).astype(np.int32), np.asarray([7, 1], np.int32))
        for i in range(20)
    ]
    groups = share_contexts(examples, 64)
    assert all(g.slots <= 64 for g in groups)
    assert [sorted(map(int, g.ids)) for g in groups] == [list(range(12)), list(range(12, 20))]


def test_a_short_prefix_of_long_prompts_is_not_worth_a_longer_row():
    def examples(common: int, own: int) -> list[Example]:
        prompts = [np.r_[np.arange(common), 1000 * i + np.arange(own)] for i in range(1, 7)]
        return [
            Example(str(i), "c", p.astype(np.int32), np.asarray([7, 1], np.int32))
            for i, p in enumerate(prompts)
        ]

    assert len(share_contexts(examples(common=300, own=20), 4096)) == 1
    assert len(share_contexts(examples(common=20, own=300), 4096)) == 6


def test_comments_of_a_thread_share_the_posts_before_them():
    """Contexts that grow from one example to the next: every post is computed once, before all comments."""
    post = [np.arange(100 * i, 100 * i + 20, dtype=np.int32) for i in range(9)]
    examples = [
        Example(f"{i}", "t", np.concatenate([*post[:i], np.full(5, 2000 + i)]), np.asarray([7, 1], np.int32))
        for i in range(1, 10)
    ]
    (group,) = share_contexts([examples[i] for i in (3, 0, 8, 1, 2, 7, 4, 6, 5)], 4096)
    assert group.ids == ("9", "8", "7", "6", "5", "4", "3", "2", "1")
    assert group.slots == 9 * 20 + 9 * 6 and group.slots_apart == sum(20 * i + 6 for i in range(1, 10))
    assert [start for start, _ in group.branches] == [0, *(20 * i for i in range(8, 0, -1))]


@st.composite
def _trees(draw) -> list[Example]:
    """Examples whose prompts leave a common trunk, or one another, at any place, some of them equal."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    prompts = [rng.integers(0, 3, draw(st.integers(1, 60)))]
    for _ in range(draw(st.integers(0, 9))):
        of = prompts[draw(st.integers(0, len(prompts) - 1))]
        kept = of[: draw(st.integers(0, len(of)))]
        prompts.append(np.append(kept, rng.integers(0, 3, draw(st.integers(0 if len(kept) else 1, 20)))))
    return [
        Example(str(n), draw(st.sampled_from(("a", "b", ""))), p.astype(np.int32), rng.integers(3, 9, 2))
        for n, p in enumerate(prompts)
    ]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(examples=_trees(), most=st.integers(40, 200))
def test_every_slot_sees_its_own_example_and_nothing_else(examples: list[Example], most: int):
    groups = share_contexts(examples, most)
    assert sorted(int(id) for group in groups for id in group.ids) == list(range(len(examples)))
    by_id = {example.id: example for example in examples}
    for group in groups:
        assert len({by_id[id].context for id in group.ids}) == 1
        assert group.slots <= most or len(group.ids) == 1
        found = layout(group)
        assert found.weights.sum() == sum(len(by_id[id].answer) for id in group.ids)
        slot = 0
        for id, (start, piece) in zip(group.ids, group.branches, strict=True):
            whole = np.concatenate([by_id[id].prompt, by_id[id].answer])
            assert start < len(by_id[id].prompt)
            for place in range(start, start + len(piece) - 1):
                seen = (np.arange(group.slots) <= slot) & (slot < found.until)
                np.testing.assert_array_equal(found.tokens[seen], whole[: place + 1])
                np.testing.assert_array_equal(found.positions[seen], np.arange(place + 1))
                assert found.targets[slot] == whole[place + 1]
                assert found.weights[slot] == (place + 1 >= len(by_id[id].prompt))
                slot += 1
        assert slot == group.slots
