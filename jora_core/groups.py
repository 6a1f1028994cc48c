"""Tokenised examples, and examples of one context merged so that they share one pass over it.

With causal attention the activations of a context do not depend on what follows. `S` suffixes (question and
answer) can therefore follow one prefix: each attends to the prefix and causally to itself, its positions go
on from the prefix's end, and loss and gradients are those of training the examples apart, at ``T_prefix +
sum(T_suffix)`` tokens instead of ``sum(T_prefix + T_suffix)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# A shared prefix shorter than this saves less than the larger group costs in packing.
_MIN_SHARED = 16
# An example joins a group only if that saves this part of its slots: what is joined is trained on in one
# microbatch, and a little arithmetic is not worth batches that are mixed less well.
_LEAST_SAVED = 1 / 8


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


@dataclass(frozen=True)
class Group:
    """Examples that share a prefix; a plain example is a prefix without suffixes.

    With more than one suffix, the first token of every suffix but the first has weight 0: the one slot that
    predicts it, the prefix's last, can predict one token only.
    """

    ids: tuple[str, ...]
    prefix: Piece
    suffixes: tuple[Piece, ...] = ()

    @property
    def slots(self) -> int:
        """Token slots that the group takes: the last token of each chain is only ever a target."""
        return (
            len(self.prefix) + sum(len(s) - 1 for s in self.suffixes)
            if self.suffixes
            else len(self.prefix) - 1
        )

    @property
    def slots_apart(self) -> int:
        """Token slots that the group's examples would take, each with the prefix of its own."""
        return sum(len(self.prefix) + len(s) - 1 for s in self.suffixes) if self.suffixes else self.slots

    @property
    def supervised(self) -> int:
        """Number of tokens with a loss weight, at most what `layout` gives."""
        return sum(int(np.count_nonzero(p.weights)) for p in (self.prefix, *self.suffixes))


class Layout(NamedTuple):
    """The slots of one group: int32 arrays [slots], `weights` float32."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    suffix_ids: np.ndarray


def layout(group: Group) -> Layout:
    """Lay a group out in slots: what stands there, what it predicts and with which weight."""
    prefix, suffixes = group.prefix, group.suffixes
    if not suffixes:
        n = len(prefix) - 1
        return Layout(
            prefix.tokens[:-1],
            prefix.tokens[1:],
            prefix.weights[1:],
            np.arange(n, dtype=np.int32),
            np.zeros(n, np.int32),
        )
    start = len(prefix)
    lengths = [len(s) - 1 for s in suffixes]
    return Layout(
        np.concatenate([prefix.tokens, *(s.tokens[:-1] for s in suffixes)]),
        np.concatenate([prefix.tokens[1:], suffixes[0].tokens[:1], *(s.tokens[1:] for s in suffixes)]),
        np.concatenate([prefix.weights[1:], suffixes[0].weights[:1], *(s.weights[1:] for s in suffixes)]),
        np.concatenate([np.arange(start), *(np.arange(start, start + n) for n in lengths)]).astype(np.int32),
        np.repeat(np.arange(len(suffixes) + 1, dtype=np.int32), [start, *lengths]),
    )


def plain_group(example: Example) -> Group:
    """An example alone."""
    return Group((example.id,), _whole(example))


def share_contexts(examples: Sequence[Example], most_slots: int) -> list[Group]:
    """Merge examples of one context that begin alike into groups of at most `most_slots` slots.

    The order of the examples does not decide what is shared: those of a context are compared in the order of
    their tokens, where the longest common prefixes stand side by side. Groups come in the order of their
    first examples, and so do the examples of a group. At least one prompt token stays in each suffix, and
    answers are never shared.
    """
    contexts: dict[str, list[int]] = {}
    alone: list[list[int]] = []
    for number, example in enumerate(examples):
        if example.context:
            contexts.setdefault(example.context, []).append(number)
        else:
            alone.append([number])
    runs = [run for numbers in contexts.values() for run in _runs(examples, numbers, most_slots)]
    return [_merged([examples[number] for number in run]) for run in sorted([*alone, *runs])]


def _runs(examples: Sequence[Example], numbers: list[int], most_slots: int) -> list[list[int]]:
    """Divide the examples of one context into those that share a prefix, each part in rising order.

    A run is extended greedily: with causal attention over blocks, and other suffixes' blocks skipped, a
    merged group computes no pair of slots that its examples apart would not, so slots are all that counts.
    """
    in_order = sorted(numbers, key=lambda n: (token_order(examples[n].prompt), n))
    runs: list[list[int]] = []
    shared = taken = shortest = 0  # tokens of the prefix, slots of the run, tokens of its shortest prompt
    for number in in_order:
        example = examples[number]
        prompt, slots = len(example.prompt), _slots_alone(example)
        if runs:
            run = runs[-1]
            first = examples[run[0]].prompt
            common = min(common_prefix(first[: shared or None], example.prompt), prompt - 1, shortest - 1)
            # A lone example becomes prefix and suffix: the slots of the two together are still its own.
            merged = taken + (len(run) - 1) * ((shared or common) - common) + slots - common
            saved = taken + slots - merged
            if common >= _MIN_SHARED and saved >= _LEAST_SAVED * slots and merged <= most_slots:
                run.append(number)
                shared, taken, shortest = common, merged, min(shortest, prompt)
                continue
        runs.append([number])
        shared, taken, shortest = 0, slots, prompt
    return [sorted(run) for run in runs]


def _slots_alone(example: Example) -> int:
    return len(example.prompt) + len(example.answer) - 1


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
    if not shared or len(prefix) < _MIN_SHARED or len(suffixes) == 1:
        return [Group((id,), (unweighted if i else prefix) + s) for i, s in enumerate(suffixes)]
    groups: list[Group] = []
    chunk: list[Piece] = []
    for suffix in suffixes:
        if chunk and len(prefix) + sum(len(s) - 1 for s in [*chunk, suffix]) > most_slots:
            groups.append(Group((id,), unweighted if groups else prefix, tuple(chunk)))
            chunk = []
        chunk.append(suffix)
    groups.append(Group((id,), unweighted if groups else prefix, tuple(chunk)))
    return groups


def _merged(run: list[Example]) -> Group:
    """One group of examples; those of one group share the longest prefix that leaves each a prompt token."""
    if len(run) == 1:
        return plain_group(run[0])
    first = min(run, key=lambda example: len(example.prompt))
    shared = min(len(first.prompt) - 1, *(common_prefix(first.prompt, e.prompt) for e in run))
    prefix = Piece(first.prompt[:shared], np.zeros(shared, np.float32))
    return Group(tuple(e.id for e in run), prefix, tuple(_whole(e)[shared:] for e in run))


def _whole(example: Example) -> Piece:
    tokens = np.concatenate([example.prompt, example.answer]).astype(np.int32)
    weights = np.zeros(len(tokens), np.float32)
    weights[len(example.prompt) :] = 1.0
    return Piece(tokens, weights)
