"""Which examples share a prefix, how groups are split, and the rows that they are packed into."""

from __future__ import annotations

from typing import Any

import numpy as np

from jora_core.batches import BatchStream
from jora_core.data import load_groups
from jora_core.groups import Example, Group, Piece, share_contexts
from jora_core.tokenize import load_tokenizer
from tests.jora_core.test_data import chains, spec


def test_the_order_of_the_file_does_not_decide_what_is_shared(tiny_model, alpaca_rows, write_rows, tmp_path):
    rows = alpaca_rows(contexts=9, questions=4)
    # Two prompts of one context that begin alike only as far as the instruction goes, in turn.
    for number, row in enumerate(rows[:4]):
        row["input"] = f"{number % 2} way of asking\n" + row["input"]
    tokenizer = load_tokenizer(tiny_model)
    whole = load_groups(spec(write_rows(tmp_path / "a.parquet", rows)), tokenizer)
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    found = load_groups(spec(write_rows(tmp_path / "b.parquet", mixed)), tokenizer)
    assert len(whole.train) == 10 and whole.counts["slots"] == found.counts["slots"]
    assert {frozenset(g.ids) for g in whole.train} == {frozenset(g.ids) for g in found.train}
    assert frozenset(("c0-q0", "c0-q2")) in {frozenset(g.ids) for g in whole.train}
    place = {row["id"]: i for i, row in enumerate(mixed)}
    order = [[place[id] for id in g.ids] for g in found.train]
    assert order == sorted(sorted(group) for group in order)
    assert sorted(map(str, chains_of(found))) == sorted(map(str, chains_of(whole)))


def chains_of(data) -> list[Any]:
    return [chain for group in data.train for chain in chains(group)]


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
        Group((str(i),), Piece(np.arange(n), np.zeros(n, np.float32)), (_suffix(30), _suffix(30)))
        for i, n in enumerate(sizes)
    ]
    slots = sum(g.slots for g in groups)
    stream = BatchStream(groups, 4096, seed=0)
    assert stream.row_lengths == (4096,)
    assert slots > 0.93 * sum(stream.build(plan).tokens.size for plan in stream.plan(0))
    alone = [Group(g.ids, g.prefix + g.suffixes[0]) for g in groups]
    assert len(BatchStream(alone, 4096, seed=0).row_lengths) == 3
    two = BatchStream(groups, 4096, seed=0, blocks=2)
    assert all(
        two.build(plan).tokens.shape == (2, length) for plan in two.plan(0) for length in [plan.length]
    )


def _suffix(length: int) -> Piece:
    return Piece(np.arange(length), np.r_[np.zeros(length - 1), 1].astype(np.float32))


def test_groups_split_beyond_the_budget():
    prompt = np.arange(40, dtype=np.int32)
    examples = [
        Example(str(i), "c", np.append(prompt, 100 + i).astype(np.int32), np.asarray([7, 1], np.int32))
        for i in range(20)
    ]
    groups = share_contexts(examples, 64)
    assert all(g.slots <= 64 for g in groups)
    assert [i for g in groups for i in g.ids] == [str(i) for i in range(20)]
    assert len(groups) == 2


def test_a_short_prefix_of_long_prompts_is_not_worth_a_longer_row():
    def examples(common: int, own: int) -> list[Example]:
        prompts = [np.r_[np.arange(common), 1000 * i + np.arange(own)] for i in range(1, 7)]
        return [
            Example(str(i), "c", p.astype(np.int32), np.asarray([7, 1], np.int32))
            for i, p in enumerate(prompts)
        ]

    assert len(share_contexts(examples(common=300, own=20), 4096)) == 1
    assert len(share_contexts(examples(common=20, own=300), 4096)) == 6
