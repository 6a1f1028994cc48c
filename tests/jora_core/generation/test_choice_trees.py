"""The trees of choices: every token of every choice is predicted once, at the slot of the token before it."""

from __future__ import annotations

import numpy as np
import pytest

from jora_core.data.batches import BatchStream
from jora_core.generation.choice_trees import Question, find_edges, group_choices

BUDGET = 512


def make_question(number: int, context: list[int], own: list[int], choices: list[list[int]]) -> Question:
    prompt = np.asarray([1, *context, *own], np.int32)
    tokens = tuple(np.asarray([*choice, 2], np.int32) for choice in choices)
    return Question(str(number), prompt, tuple(map(str, choices)), tokens, str(context[:1]))


def some_questions() -> list[Question]:
    rng = np.random.default_rng(0)
    contexts = [rng.integers(10, 90, size).tolist() for size in (20, 37, 61)]
    choices = [
        [[3, 4], [3, 5], [3, 4, 6]],  # one begins another
        [[3, 4], [3, 4]],  # twice the same
        [[]],  # the end alone
        [[n] for n in range(3, 9)],
        rng.integers(3, 6, (9, 4)).tolist(),
    ]
    return [
        make_question(
            n, contexts[n % 3], rng.integers(10, 90, int(rng.integers(1, 9))).tolist(), choices[n % 5]
        )
        for n in range(40)
    ]


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("share", [True, False])
def test_the_edges_of_a_choice_are_its_tokens(blocks: int, share: bool) -> None:
    """Walking back from an edge's slot gives the choice before it and the prompt; each edge is there once."""
    questions = some_questions()
    grouped = group_choices(questions, BUDGET // 2, share)
    stream = BatchStream(grouped.groups, BUDGET, seed=0, blocks=blocks, shuffle=False)
    plans = stream.plan(0)
    seen = []
    for plan, edges in zip(plans, find_edges(plans, grouped, questions, blocks, BUDGET), strict=True):
        batch = stream.build(plan)
        size = edges.targets.shape[1]
        tokens, positions, until = (
            x.reshape(blocks, -1) for x in (batch.tokens, batch.positions, batch.until)
        )
        # Adjacent slots are computed together.
        assert (np.diff(edges.index, axis=1) >= 0).all()
        at = np.take_along_axis(edges.index, edges.at, axis=1)
        pairs = np.stack([np.repeat(np.arange(blocks), size), at.ravel(), edges.targets.ravel()], 1)
        used = np.unique(edges.places)
        assert len(np.unique(pairs[used], axis=0)) == len(used)
        for example in np.unique(edges.examples):
            mine = edges.places[edges.examples == example]
            question, choice = grouped.owners[example]
            whole = np.concatenate(
                [questions[question].prompt, questions[question].choice_tokens[choice]]
            ).tolist()
            first = len(questions[question].prompt)
            # In any order: a sum has none.
            by_position = {int(positions[pairs[place][0], pairs[place][1]]): pairs[place] for place in mine}
            assert sorted(by_position) == list(range(first - 1, len(whole) - 1))
            for position, (block, slot, target) in by_position.items():
                row = slot - slot % plan.length
                ahead = np.arange(row, slot + 1)
                visible = ahead[slot % plan.length < until[block, ahead]]
                assert tokens[block, visible].tolist() == whole[: position + 1]
                assert target == whole[position + 1]
            seen.append(int(example))
    assert sorted(seen) == list(range(len(grouped.owners)))


def test_what_choices_have_in_common_has_one_slot() -> None:
    question = make_question(0, list(range(10, 40)), [], [[3, 4, 7], [3, 4, 8], [3, 5, 7]])
    grouped = group_choices([question], BUDGET)
    (group,) = grouped.groups
    # The prompt, 3, then 4, 7, 8 and 5, 7.
    assert group.slots == len(question.prompt) + 1 + 3 + 2
    plans = BatchStream(grouped.groups, BUDGET, seed=0, shuffle=False).plan(0)
    (edges,) = find_edges(plans, grouped, [question], 1, BUDGET)
    # Behind the prompt, 3, 4, 7 and 8, and 5 and 7.
    assert len(np.unique(edges.index)) == 1 + 1 + 3 + 2
    # To each of these tokens, and to the end of each choice.
    assert len(np.unique(edges.places)) == 6 + 3 and len(edges.places) == 3 * 4


def test_more_edges_than_slots() -> None:
    """A short prompt with many choices of one token: each slot but the last predicts an end, and one all."""
    question = make_question(0, [10], [], [[n] for n in range(3, 99)])
    grouped = group_choices([question], BUDGET)
    stream = BatchStream(grouped.groups, BUDGET, seed=0, shuffle=False)
    found = find_edges(stream.plan(0), grouped, [question], 1, BUDGET)
    assert sum(len(edges.places) for edges in found) == 2 * 96
