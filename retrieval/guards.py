"""Guards against leakage: splits by context, duplicates across splits, labels in the text, seeded caps."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from retrieval.corpus import Tally
from retrieval.errors import InputError
from retrieval.text import seeded_hash, seeded_share

Item = TypeVar("Item")

_LINK = re.compile(r">>\s*\d")


def split_of(seed: int, context_id: str, test_share: float) -> str:
    """The split of a context by hash: it never changes as other contexts come and go."""
    return "test" if seeded_share(seed, "split", context_id) < test_share else "train"


def drop_across_splits(
    items: Sequence[Item],
    split: Callable[[Item], str],
    key: Callable[[Item], Hashable],
    reason: str,
    tally: Tally,
) -> list[Item]:
    """Drops training items whose key also occurs in the test split, and counts them under `reason`."""
    held_out = {key(item) for item in items if split(item) == "test"}
    if not held_out:
        return list(items)
    kept = [item for item in items if split(item) == "test" or key(item) not in held_out]
    tally.dropped[reason] += len(items) - len(kept)
    return kept


def cap(
    items: Sequence[Item],
    split: Callable[[Item], str],
    context: Callable[[Item], str],
    name: Callable[[Item], str],
    limits: tuple[int | None, int | None],
    seed: int,
    tally: Tally,
) -> list[Item]:
    """At most `limits` (train, test) items, in their old order.

    Training keeps whole contexts, so that examples go on sharing prefixes; the test split is thinned evenly,
    because intervals are clustered by context and want many.
    """
    kept: set[int] = set()
    for which, limit in zip(("train", "test"), limits, strict=True):
        places = [i for i, item in enumerate(items) if split(item) == which]
        if limit is not None and len(places) > limit:
            if which == "train":
                order = {c: seeded_hash(seed, "cap", c) for c in {context(items[i]) for i in places}}
                places.sort(key=lambda i: (order[context(items[i])], i))
            else:
                places.sort(key=lambda i: seeded_hash(seed, "cap", name(items[i])))
            tally.dropped[f"over_max_{which}_records"] += len(places) - limit
            places = places[:limit]
        kept.update(places)
    return [item for i, item in enumerate(items) if i in kept]


def require_training(splits: Iterable[str], task: str, what: str) -> None:
    """Refuses a corpus whose contexts all fell into the test split.

    Raises:
        InputError: nothing is left to train on.
    """
    seen = list(splits)
    if "train" not in seen:
        n = len(seen)
        raise InputError(
            f"{task}: none of the {n} {what} is in the training split; add data, lower test_share or change "
            "the seed"
        )


def has_link(text: str) -> bool:
    """Whether a quotelink (`>>123`) survived in a text: the label would leak."""
    return _LINK.search(text) is not None
