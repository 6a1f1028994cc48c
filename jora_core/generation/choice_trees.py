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

from jora_core.data.batches import BatchStream, RowPlan
from jora_core.data.row_packing import batch_rows
from jora_core.data.shared_context import Example, Group, share_contexts
from jora_core.model.blockwise_attention import fitting_block


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
        index: int32 [G, P], the slots where tokens are predicted, in ascending order, numbered within their
            block of B/G rows. Padding repeats the last one.
        at: int32 [G, M], number in `index` of each edge's slot; 0 in padding.
        targets: int32 [G, M], the token to predict there.
        places: int [U], number of an edge in `targets`, flattened.
        examples: int [U], number of an example with this edge.
    """

    index: np.ndarray
    at: np.ndarray
    targets: np.ndarray
    places: np.ndarray
    examples: np.ndarray


@dataclass(frozen=True)
class ChoicePlan:
    """How the choices of questions are computed; it is the same for all models.

    Attributes:
        sizes: number of choices of each question.
        stream: the groups in batches.
        batches: plan and edges of each batch.
        heights: rows of the batches of each row length; without one, as many as the token budget allows.
        attention_block: slots of a block of blockwise attention, None to choose it by platform.
    """

    sizes: list[int]
    stream: BatchStream
    batches: list[tuple[RowPlan, Edges]]
    heights: dict[int, int]
    attention_block: int | None


def plan_choices(
    questions: Sequence[Question], tokens_per_batch: int, *, blocks: int = 1, share: bool = True
) -> ChoicePlan | None:
    """Plan the computation of the choices of questions.

    Args:
        questions: the questions with their choices.
        tokens_per_batch: token slots of a batch.
        blocks: size of the mesh's data axis.
        share: whether questions of one context share one pass over it.

    Returns:
        The plan, or None without any choice.
    """
    grouped = group_choices(questions, tokens_per_batch, share)
    if not grouped.groups:
        return None
    stream = BatchStream(grouped.groups, tokens_per_batch, seed=0, blocks=blocks, shuffle=False)
    plans = stream.plan(0)
    edges = find_edges(plans, grouped, questions, blocks, tokens_per_batch)
    return ChoicePlan(
        [len(question.choice_tokens) for question in questions],
        stream,
        list(zip(plans, edges, strict=True)),
        _heights(plans) if blocks == 1 else {},
        fitting_block(stream.sample_of_until()),
    )


def _heights(plans: Sequence[RowPlan]) -> dict[int, int]:
    """Return the most rows in use of the batches of each row length.

    A stream pads every batch to its token budget, so that training has few programs. Here all batches are
    known: a few questions of one thread, which fill one row, must not pay for three empty ones.
    """
    found: dict[int, int] = {}
    for plan in plans:
        found[plan.length] = max(found.get(plan.length, 0), len(plan.rows))
    return found


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
    """Return the edges of each batch; batches of one row length have equal shapes, with padding.

    Args:
        plans: the rows of each batch.
        grouped: `group_choices` of the questions.
        questions: the questions.
        blocks: G, size of the mesh's data axis.
        budget: token slots of a batch.
    """
    found = [_edges_of_blocks(plan, grouped, questions, blocks, budget) for plan in plans]
    most = {plan.length: np.zeros(2, np.int64) for plan in plans}
    for plan, of_blocks in zip(plans, found, strict=True):
        for block in of_blocks:
            sizes = len(block.slots), len(block.targets)
            most[plan.length] = np.maximum(most[plan.length], sizes)
    sizes = {length: [_rounded(int(size)) for size in pair] for length, pair in most.items()}
    return [_padded(of_blocks, *sizes[plan.length]) for plan, of_blocks in zip(plans, found, strict=True)]


def _rounded(count: int) -> int:
    """Round up to a power of two or a quarter, half or three quarters more: each number is a program."""
    step = max(1 << (count.bit_length() - 1), 16) // 4
    return -(-count // step) * step


class _BlockEdges(NamedTuple):
    """The edges of one block of rows.

    Attributes:
        slots: int [P'], slots where tokens are predicted, in ascending order.
        at: int [M'], number of each edge's slot.
        targets: int [M'], the token of each edge.
        places: int [U'], the edge of each use.
        examples: int [U'], the example of each use.
    """

    slots: np.ndarray
    at: np.ndarray
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
    slots, at = np.unique(edges[0], return_inverse=True)
    return _BlockEdges(slots, at.reshape(-1), edges[1], places.reshape(-1), examples)


def _padded(of_blocks: Sequence[_BlockEdges], most_slots: int, most_edges: int) -> Edges:
    index = np.zeros((len(of_blocks), most_slots), np.int32)
    at, targets = np.zeros((2, len(of_blocks), most_edges), np.int32)
    for number, block in enumerate(of_blocks):
        index[number, : len(block.slots)] = block.slots
        # Attention computes adjacent slots together: slot 0 at the end would make it visit all keys.
        index[number, len(block.slots) :] = block.slots[-1] if len(block.slots) else 0
        at[number, : len(block.at)] = block.at
        targets[number, : len(block.targets)] = block.targets
    places = np.concatenate([number * most_edges + block.places for number, block in enumerate(of_blocks)])
    return Edges(index, at, targets, places, np.concatenate([block.examples for block in of_blocks]))
