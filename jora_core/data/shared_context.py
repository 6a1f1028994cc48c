"""Tokenised examples, and examples of one context merged so that what they have in common is computed once.

With causal attention the activations of a token depend on those before it alone. Examples whose tokens begin
alike can therefore share that part as the branches of a tree: each branch attends to the path from the root
to it and causally to itself, its positions go on from the path's length, and loss and gradients are those of
training the examples apart. A table with its questions is a trunk with leaves; the comments of a thread,
whose contexts grow from one to the next, leave the trunk one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# A shared prefix shorter than this saves less than the larger group costs in packing.
_MIN_SHARED = 16
# An example joins a group only if that saves this part of its slots: what is joined is trained on in one
# microbatch, and a little arithmetic is not worth batches that are mixed less well.
_LEAST_SAVED = 1 / 8

_Tree = list[tuple[int, int]]  # of each branch: number of its example, where it starts


@dataclass(frozen=True)
class Piece:
    """Tokens (int32 [T]) with the loss weight (float32 [T]) that each has when it is the one predicted."""

    tokens: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Piece:
        return Piece(self.tokens[part], self.weights[part])

    def __add__(self, other: Piece) -> Piece:
        return Piece(
            np.concatenate([self.tokens, other.tokens]), np.concatenate([self.weights, other.weights])
        )


@dataclass(frozen=True)
class Example:
    """One tokenised record: prompt [bos, ...] without loss, answer [..., eos] with loss."""

    id: str
    context: str
    prompt: np.ndarray
    answer: np.ndarray


class Branch(NamedTuple):
    """Tokens that follow the first `start` tokens of the path of the branch before; they end an example."""

    start: int
    piece: Piece


@dataclass(frozen=True)
class Group:
    """Examples that share what their tokens begin with: branches of a tree, depth first.

    A branch of its own is a plain example. The first token of every later branch must have weight 0: the slot
    that would predict it predicts what follows on the path that it leaves.
    """

    ids: tuple[str, ...]
    branches: tuple[Branch, ...]

    @property
    def slots(self) -> int:
        """Token slots that the group takes: the last token of each branch is only ever a target."""
        return sum(len(piece) - 1 for _, piece in self.branches)

    @property
    def slots_apart(self) -> int:
        """Token slots that the group's examples would take, each with all its tokens."""
        return sum(start + len(piece) - 1 for start, piece in self.branches)

    @property
    def supervised(self) -> int:
        """Number of tokens with a loss weight, at most what `layout` gives."""
        return sum(int(np.count_nonzero(piece.weights)) for _, piece in self.branches)


class Layout(NamedTuple):
    """The slots of one group: int32 arrays [slots], `weights` float32.

    `until` is the first slot of the group that does not see a slot any more.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    until: np.ndarray


def layout(group: Group) -> Layout:
    """Lay a group out in slots: what stands there, what it predicts and with which weight."""
    pieces = [piece for _, piece in group.branches]
    spans = [(start, start + len(piece) - 1) for start, piece in group.branches]
    positions = np.concatenate([np.arange(*span, dtype=np.int32) for span in spans])
    until = np.empty_like(positions)
    # By position: the first slot from which on no branch has that position's token on its path.
    closed = np.full(positions.max(initial=0) + 1, len(positions), np.int32)
    stop = len(positions)
    for start, end in reversed(spans):
        until[stop - (end - start) : stop] = closed[start:end]
        stop -= end - start
        closed[start:] = stop
    return Layout(
        np.concatenate([piece.tokens[:-1] for piece in pieces]),
        np.concatenate([piece.tokens[1:] for piece in pieces]),
        np.concatenate([piece.weights[1:] for piece in pieces]),
        positions,
        until,
    )


def plain_group(example: Example) -> Group:
    """An example alone."""
    return Group((example.id,), (_branch(example, 0),))


def share_contexts(examples: Sequence[Example], most_slots: int) -> list[Group]:
    """Merge examples of one context that begin alike into groups of at most `most_slots` slots.

    The order of the examples does not decide what is shared: those of a context are ordered as the leaves of
    the tree of their prompts. Groups come in the order of their first examples. At least one prompt token
    stays in each branch, and answers are never shared.
    """
    contexts: dict[str, list[int]] = {}
    trees: list[_Tree] = []
    for number, example in enumerate(examples):
        if example.context:
            contexts.setdefault(example.context, []).append(number)
        else:
            trees.append([(number, 0)])
    for numbers in contexts.values():
        trees.extend(_trees(examples, numbers, most_slots))
    return [
        Group(
            tuple(examples[number].id for number, _ in tree),
            tuple(_branch(examples[number], start) for number, start in tree),
        )
        for tree in sorted(trees, key=min)
    ]


def _trees(examples: Sequence[Example], numbers: list[int], most_slots: int) -> list[_Tree]:
    """Divide the examples of one context into groups.

    A group is extended greedily: with causal attention over blocks, and blocks of other branches skipped, it
    computes no pair of slots that its examples apart would not, so slots are all that counts.
    """
    trees: list[_Tree] = []
    taken = 0
    for leaf, common in _leaves([examples[number].prompt for number in numbers]):
        example = examples[numbers[leaf]]
        slots = len(example.prompt) + len(example.answer) - 1
        start = min(common, len(example.prompt) - 1)
        if start >= max(_MIN_SHARED, _LEAST_SAVED * slots) and taken + slots - start <= most_slots:
            trees[-1].append((numbers[leaf], start))
            taken += slots - start
        else:
            trees.append([(numbers[leaf], 0)])
            taken = slots
    return trees


def _leaves(prompts: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """The leaves of the tree of these prompts, depth first: (number, tokens in common with the one before).

    Of the children of a node the one that reaches farthest comes first: its tokens, which the others hang on,
    then stand together, and the blocks of attention that hold ends of branches alone are skipped. Equal
    prompts keep their order.
    """
    order = sorted(range(len(prompts)), key=lambda n: (token_order(prompts[n]), n))
    common = [common_prefix(prompts[a], prompts[b]) for a, b in pairwise(order)]
    found: list[tuple[int, int]] = []
    # Runs low to high - 1 of `order` still to come, the next one last; `shared` with what comes before.
    waiting = [(0, len(order), 0)]
    while waiting:
        low, high, shared = waiting.pop()
        if high - low == 1:
            found.append((order[low], shared))
            continue
        least = min(common[low : high - 1])
        cuts = [low, *(i + 1 for i in range(low, high - 1) if common[i] == least), high]
        children = [(max(len(prompts[n]) for n in order[a:b]), -a, b) for a, b in pairwise(cuts)]
        children.sort()
        waiting += [(-a, b, least) for _, a, b in children]
        low, high, _ = waiting.pop()
        waiting.append((low, high, shared))
    return found


def token_order(prompt: np.ndarray) -> bytes:
    """What to sort prompts by, so that those with the longest common prefixes stand side by side."""
    return prompt.astype(">i4").tobytes()  # big-endian ids compare as bytes as they do as numbers


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def suffix_groups(
    id: str, prefix: Piece, suffixes: Sequence[Piece], most_slots: int, shared: bool
) -> list[Group]:
    """Groups of a row that comes with its suffixes, split beyond `most_slots`.

    The prefix's own loss counts once, with the first group. If a suffix starts with a supervised token, the
    last prefix token moves into the suffixes, so that each suffix has a slot of its own to predict from.
    """
    if len(suffixes) > 1 and any(s.weights[0] > 0 for s in suffixes):
        first, rest = prefix[-1:], Piece(prefix.tokens[-1:], np.zeros(1, np.float32))
        prefix = prefix[:-1]
        suffixes = [first + suffixes[0], *(rest + s for s in suffixes[1:])]
    unweighted = Piece(prefix.tokens, np.zeros_like(prefix.weights))
    shared = shared and len(prefix) >= _MIN_SHARED
    trees: list[list[Branch]] = []
    taken = 0
    for suffix in suffixes:
        if trees and shared and taken + len(suffix) - 1 <= most_slots:
            trees[-1].append(Branch(len(prefix), suffix))
            taken += len(suffix) - 1
        else:
            trees.append([Branch(0, (unweighted if trees else prefix) + suffix)])
            taken = len(prefix) + len(suffix) - 1
    return [Group((id,), tuple(tree)) for tree in trees]


def _branch(example: Example, start: int) -> Branch:
    prompt, answer = example.prompt[start:], example.answer
    weights = np.repeat(np.asarray([0, 1], np.float32), [len(prompt), len(answer)])
    return Branch(start, Piece(np.concatenate([prompt, answer]).astype(np.int32), weights))
