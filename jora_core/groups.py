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
# Row length at which attention's scores cost as much as all else: 8 times the width of a small model. Wider
# models share more gladly than this says, but what it refuses to share saves little there as well.
_ATTENTION_SLOTS = 1024


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


def row_cost(slots: int | np.ndarray) -> float | np.ndarray:
    """Relative cost of a row: linear in its slots but for attention, which looks from each slot at all."""
    return slots * (1 + slots / _ATTENTION_SLOTS)


def share_contexts(examples: Sequence[Example], most_slots: int) -> list[Group]:
    """Merge consecutive examples of one context into groups of at most `most_slots` slots.

    A run is extended greedily while the longer row costs less than the run and the example apart: many long
    suffixes behind a short prefix would save a few slots and pay for them in attention. At least one prompt
    token stays in each suffix, and answers are never shared.
    """
    groups: list[Group] = []
    run: list[Example] = []
    shared = taken = 0  # tokens of the prefix, slots of the run
    for example in examples:
        if run and run[0].context == example.context and example.context:
            common = common_prefix(run[0].prompt[: shared or None], example.prompt)
            common = min(common, len(example.prompt) - 1, min(len(e.prompt) for e in run) - 1)
            slots = common + sum(len(e.prompt) + len(e.answer) - common - 1 for e in [*run, example])
            apart = row_cost(taken) + row_cost(_slots_alone(example))
            if common >= _MIN_SHARED and row_cost(slots) < apart and slots <= most_slots:
                run.append(example)
                shared, taken = common, slots
                continue
        groups.extend(_close(run, shared))
        run, shared, taken = [example], 0, _slots_alone(example)
    groups.extend(_close(run, shared))
    return groups


def _slots_alone(example: Example) -> int:
    return len(example.prompt) + len(example.answer) - 1


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


def _close(run: list[Example], shared: int) -> list[Group]:
    if not run:
        return []
    if len(run) == 1:
        return [plain_group(run[0])]
    prefix = Piece(run[0].prompt[:shared], np.zeros(shared, np.float32))
    return [Group(tuple(e.id for e in run), prefix, tuple(_whole(e)[shared:] for e in run))]


def _whole(example: Example) -> Piece:
    tokens = np.concatenate([example.prompt, example.answer]).astype(np.int32)
    weights = np.zeros(len(tokens), np.float32)
    weights[len(example.prompt) :] = 1.0
    return Piece(tokens, weights)
