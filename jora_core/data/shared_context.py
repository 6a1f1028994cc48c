"""Tokenised examples, and prefix trees of examples that share a context.

With causal attention the activations of a token depend only on earlier tokens. So the common prefix of
several examples can be computed once, as the trunk of a tree whose branches are the examples' own tokens. A
branch attends to the path from the root to the branch, and causally to its own tokens. The positions of a
branch continue those of the path. Loss and gradients equal those of training each example alone.

The questions on one table are leaves of one trunk. The contexts of a thread's comments grow from comment to
comment, so the comments branch off the trunk one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Sharing a shorter prefix saves less than it costs: a larger group fits less well into rows.
_MIN_SHARED = 16
# An example joins a group only if that saves this share of its slots. The examples of a group are trained on
# in one microbatch, and a small saving is not worth microbatches that mix the data less well.
_LEAST_SAVED = 1 / 8

_Tree = list[tuple[int, int]]  # for each branch: number of its example, and where it starts


@dataclass(frozen=True)
class Piece:
    """Tokens (int32 [T]) and the loss weight (float32 [T]) of each token as a target."""

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
    """One tokenised record: a prompt [bos, ...] without loss and an answer [..., eos] with loss.

    The `answer` of a conversation holds later turns of the user too. Then `weights` (float32, of its length)
    are 0 there; None is 1 everywhere.
    """

    id: str
    context: str
    prompt: np.ndarray
    answer: np.ndarray
    weights: np.ndarray | None = None


class Branch(NamedTuple):
    """The tokens of one example that follow the first `start` tokens of the previous branch's path."""

    start: int
    piece: Piece


@dataclass(frozen=True)
class Group:
    """Examples that share prefixes, as the branches of a prefix tree, depth first.

    A group of one branch is a plain example. The first token of every later branch must have weight 0: the
    slot where the branch leaves a path already predicts the next token of that path.
    """

    ids: tuple[str, ...]
    branches: tuple[Branch, ...]

    @property
    def slots(self) -> int:
        """Number of token slots. The last token of a branch takes no slot, since it is only a target."""
        return sum(len(piece) - 1 for _, piece in self.branches)

    @property
    def slots_apart(self) -> int:
        """Number of token slots of the same examples without sharing."""
        return sum(start + len(piece) - 1 for start, piece in self.branches)

    @property
    def supervised(self) -> int:
        """Number of tokens with a loss weight, at most the number in `layout`."""
        return sum(int(np.count_nonzero(piece.weights)) for _, piece in self.branches)


class Layout(NamedTuple):
    """The token slots of one group, as arrays [slots], int32 except for the float32 `weights`.

    Attributes:
        tokens: the input tokens.
        targets: the token to predict at each slot.
        weights: the loss weight of each target.
        positions: position of each token within its own example.
        until: first later slot that may not attend to each slot; see `jora_core.model.attention_slots`.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    until: np.ndarray


def layout(group: Group) -> Layout:
    """Lay a group out in slots, branch after branch."""
    pieces = [piece for _, piece in group.branches]
    spans = [(start, start + len(piece) - 1) for start, piece in group.branches]
    positions = np.concatenate([np.arange(*span, dtype=np.int32) for span in spans])
    until = np.empty_like(positions)
    # From the last branch to the first. ends_at[p]: the first slot from which on no branch has the present
    # token of position p on its path. A branch that starts at position s ends all tokens of the branches
    # before it at positions s and above, and leaves those below s visible.
    ends_at = np.full(positions.max(initial=0) + 1, len(positions), np.int32)
    stop = len(positions)
    for start, end in reversed(spans):
        until[stop - (end - start) : stop] = ends_at[start:end]
        stop -= end - start
        ends_at[start:] = stop
    return Layout(
        np.concatenate([piece.tokens[:-1] for piece in pieces]),
        np.concatenate([piece.tokens[1:] for piece in pieces]),
        np.concatenate([piece.weights[1:] for piece in pieces]),
        positions,
        until,
    )


def plain_group(example: Example) -> Group:
    """Return a group of one example."""
    return Group((example.id,), (_branch(example, 0),))


def share_contexts(examples: Sequence[Example], most_slots: int) -> list[Group]:
    """Merge examples of one context that share a prefix into groups.

    The shared prefixes do not depend on the order of the examples, because the examples of a context are
    visited as the leaves of the prefix tree of their prompts. At least one prompt token stays in each branch
    to predict the answer. Answers are never shared.

    Args:
        examples: examples with the name of their context, "" for none.
        most_slots: limit of a group in slots.

    Returns:
        Groups in the order of their first examples.
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
        # The smallest example number of a tree decides, so groups keep the order of the file.
        for tree in sorted(trees, key=min)
    ]


def _trees(examples: Sequence[Example], numbers: list[int], most_slots: int) -> list[_Tree]:
    """Divide the examples of one context into groups.

    Groups are extended greedily up to `most_slots`. The cost of attention is no criterion: attention skips
    the blocks between branches, so a group computes no more pairs of slots than its examples alone.
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
    """Return the leaves of the prompts' prefix tree, depth first.

    Among the children of a node, the one with the longest prompt comes first. The tokens of the long path are
    then adjacent, so attention can skip whole blocks that hold only the ends of other branches. Equal prompts
    keep their order.

    Returns:
        For each leaf, the number of its prompt and of the tokens in common with the previous leaf.
    """
    order = sorted(range(len(prompts)), key=lambda n: (token_order(prompts[n]), n))
    common = [common_prefix(prompts[a], prompts[b]) for a, b in pairwise(order)]
    found: list[tuple[int, int]] = []
    # A stack of (low, high, shared), the next one to visit on top: prompts order[low:high] have `shared`
    # tokens in common with the leaf that is visited before them.
    # No recursion: in a long thread each context grows from the one before, and the tree is as deep as the
    # thread is long.
    waiting = [(0, len(order), 0)]
    while waiting:
        low, high, shared = waiting.pop()
        if high - low == 1:
            found.append((order[low], shared))
            continue
        # The node's children are the runs between the places where neighbours have least in common.
        least = min(common[low : high - 1])
        cuts = [low, *(i + 1 for i in range(low, high - 1) if common[i] == least), high]
        children = [(max(len(prompts[n]) for n in order[a:b]), -a, b) for a, b in pairwise(cuts)]
        children.sort()
        waiting += [(-a, b, least) for _, a, b in children]
        low, high, _ = waiting.pop()
        waiting.append((low, high, shared))
    return found


def token_order(prompt: np.ndarray) -> bytes:
    """Return a sort key that puts prompts with the longest common prefixes side by side."""
    return prompt.astype(">i4").tobytes()  # as big-endian bytes, ids compare as they do as numbers


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def suffix_groups(
    id: str, prefix: Piece, suffixes: Sequence[Piece], most_slots: int, shared: bool
) -> list[Group]:
    """Make groups of a prefix and the suffixes that continue it.

    The loss of the prefix counts once, in the first group. If a suffix begins with a supervised token, the
    last prefix token moves into all suffixes. Each suffix then has its own slot to predict its first token.

    Args:
        id: id of the record.
        prefix: tokens before the suffixes.
        suffixes: continuations of the prefix.
        most_slots: limit of a group in slots. Suffixes beyond the limit open another group with the prefix.
        shared: False gives each suffix its own copy of the prefix.
    """
    if len(suffixes) > 1 and any(s.weights[0] > 0 for s in suffixes):
        # The token keeps its own weight in the first suffix only, so its loss counts once.
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
    if example.weights is not None:
        weights[len(prompt) :] = example.weights
    return Branch(start, Piece(np.concatenate([prompt, answer]).astype(np.int32), weights))
