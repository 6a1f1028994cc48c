"""Prefix trees of choices: what a record's choices have in common is computed once.

Each token of a choice is predicted at the slot of the token before it, and choices that begin alike are
predicted at the same slots: behind the prompt, "#1" and "#2" need the slots "#", "1" and "2" alone. So the
slots are the inner nodes of a tree, and the model is asked for its edges: a slot, and a token to predict
there. The last token of a choice, end-of-sequence, takes no slot, since it is only predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jora_core.data.batches import RowPlan
from jora_core.data.row_packing import batch_rows
from jora_core.data.shared_context import Example, Group, share_contexts


@dataclass(frozen=True)
class Question:
    """One record to answer: the prompt int32 [T] with BOS, and the tokens of each choice with EOS."""

    id: str
    prompt: np.ndarray
    choices: tuple[str, ...]
    choice_tokens: tuple[np.ndarray, ...]
    context: str = ""


class GroupedChoices(NamedTuple):
    """Groups of the choices of questions, and the numbers of question and choice of each example."""

    owners: list[tuple[int, int]]
    groups: list[Group]


class Edges(NamedTuple):
    """The edges of a batch's trees, and which edges make up each choice.

    Attributes:
        index: int32 [G, M], the slot of each edge, numbered within its block of B/G rows; 0 in padding.
        targets: int32 [G, M], the token to predict there.
        places: int [U], number of an edge in `index`, flattened.
        examples: int [U], number of an example with this edge.
    """

    index: np.ndarray
    targets: np.ndarray
    places: np.ndarray
    examples: np.ndarray


def group_choices(questions: Sequence[Question], most_slots: int, share: bool = True) -> GroupedChoices:
    """Make an example of each choice and group the examples. An example's id is its number.

    Args:
        questions: the questions with their choices.
        most_slots: largest group, in token slots.
        share: whether questions of one context share one pass over it.
    """
    owners: list[tuple[int, int]] = []
    examples: list[Example] = []
    for number, question in enumerate(questions):
        # The choices of a question always share the question's prompt. A unique context name keeps other
        # questions out of the group.
        context = question.context if share and question.context else f"alone {number}"
        for choice, tokens in enumerate(question.choice_tokens):
            # Prompts are shared and answers are not: all but the last token of a choice belong to the prompt.
            prompt = np.concatenate([question.prompt, tokens[:-1]])
            # Grouping changes the order, so the id is the place in `owners`.
            examples.append(Example(str(len(owners)), context, prompt, tokens[-1:]))
            owners.append((number, choice))
    return GroupedChoices(owners, share_contexts(examples, most_slots))


def find_edges(
    plans: Sequence[RowPlan], grouped: GroupedChoices, questions: Sequence[Question], blocks: int, budget: int
) -> list[Edges]:
    """Return the edges of each batch; batches of one row length have the same number, with padding.

    Args:
        plans: the rows of each batch.
        grouped: `group_choices` of the questions.
        questions: the questions.
        blocks: G, size of the mesh's data axis.
        budget: token slots of a batch.
    """
    found = [_edges_of_blocks(plan, grouped, questions, blocks, budget) for plan in plans]
    most: dict[int, int] = {}
    for plan, of_blocks in zip(plans, found, strict=True):
        most[plan.length] = max(most.get(plan.length, 0), *(len(block.slots) for block in of_blocks))
    return [
        _padded(of_blocks, _rounded(most[plan.length])) for plan, of_blocks in zip(plans, found, strict=True)
    ]


def _rounded(count: int) -> int:
    """Round up to a power of two or a quarter, half or three quarters more: each number is a program."""
    step = max(1 << (count.bit_length() - 1), 16) // 4
    return -(-count // step) * step


class _BlockEdges(NamedTuple):
    """The edges of one block of rows: slots and targets [M'], and the edge and example of each use [U']."""

    slots: np.ndarray
    targets: np.ndarray
    places: np.ndarray
    examples: np.ndarray


def _edges_of_blocks(
    plan: RowPlan, grouped: GroupedChoices, questions: Sequence[Question], blocks: int, budget: int
) -> list[_BlockEdges]:
    height = batch_rows(plan.length, budget, blocks) // blocks
    uses: list[list[tuple[int, np.ndarray, np.ndarray]]] = [[] for _ in range(blocks)]
    for row, groups in enumerate(plan.rows):
        slot = row % height * plan.length
        for number in groups:
            group = grouped.groups[number]
            for example, path in _paths(group, slot):
                question, choice = grouped.owners[example]
                tokens = questions[question].choice_tokens[choice]
                first = len(questions[question].prompt) - 1
                # A copy: the next example overwrites the path.
                uses[row // height].append((example, path[first : first + len(tokens)].copy(), tokens))
            slot += group.slots
    return [_distinct(of_block) for of_block in uses]


def _paths(group: Group, slot: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each example of a group from `slot` on: its number, and an array of the slots of its tokens."""
    path = np.zeros(max(start + len(piece) for start, piece in group.branches), np.int64)
    for id, (start, piece) in zip(group.ids, group.branches, strict=True):
        own = len(piece) - 1
        path[start : start + own] = np.arange(slot, slot + own)
        slot += own
        yield int(id), path


def _distinct(uses: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> _BlockEdges:
    """Number the distinct edges of (example, slots, tokens) of choices."""
    if not uses:
        return _BlockEdges(*(np.zeros(0, np.int64) for _ in _BlockEdges._fields))
    pairs = np.stack([np.concatenate([slots for _, slots, _ in uses]), np.concatenate([t for *_, t in uses])])
    edges, places = np.unique(pairs, axis=1, return_inverse=True)
    examples = np.repeat([example for example, *_ in uses], [len(tokens) for *_, tokens in uses])
    return _BlockEdges(edges[0], edges[1], places.reshape(-1), examples)


def _padded(of_blocks: Sequence[_BlockEdges], size: int) -> Edges:
    index, targets = np.zeros((2, len(of_blocks), size), np.int32)
    for number, block in enumerate(of_blocks):
        index[number, : len(block.slots)] = block.slots
        targets[number, : len(block.targets)] = block.targets
    places = np.concatenate([number * size + block.places for number, block in enumerate(of_blocks)])
    return Edges(index, targets, places, np.concatenate([block.examples for block in of_blocks]))
