"""Splits by context, duplicates across splits, quotelinks in texts, and limits on the number of records."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from jora_core.base.errors import InputError
from retrieval.corpus.types import Tally
from retrieval.guards.near_duplicates import NearDuplicates
from retrieval.text.normalize import seeded_hash, seeded_share

Item = TypeVar("Item")

_LINK = re.compile(r">>\s*\d")


def split_of(seed: int, context_id: str, test_share: float) -> str:
    """Return the split of a context, decided by a hash of its id.

    The split does not change when other contexts are added or removed.

    Args:
        seed: seed of the build.
        context_id: id of the context.
        test_share: share of the contexts that are the test split.
    """
    return "test" if seeded_share(seed, "split", context_id) < test_share else "train"


def splits_by_time(times: Mapping[str, float | None], test_share: float, field: str) -> dict[str, str]:
    """Split contexts by time. The newest contexts are the test split.

    Contexts of the same moment stay together, so every test context is later than every training context. A
    context without a time is in the training split, because its age is unknown.

    Args:
        times: seconds since 1970 of each context by id, None if unknown.
        test_share: share of the contexts with a time that are the test split.
        field: the setting that chooses this split, for errors.

    Returns:
        The split of each context by id.

    Raises:
        InputError: no context has a time, or all times are the same.
    """
    known = sorted(time for time in times.values() if time is not None)
    if not known:
        raise InputError(
            f"{field} is time, but none of the {len(times)} contexts has a time; give times in the source, "
            "or set it to context"
        )
    wanted = round(test_share * len(known))
    # The time of the oldest test context. Later contexts are all in the test split, so it may get more than
    # its share where many have the same time.
    first = known[len(known) - wanted] if wanted else float("inf")
    if first == known[0]:
        raise InputError(
            f"{field} is time, but the newest {wanted} of {len(known)} contexts are of the same moment as "
            "the oldest; set it to context"
        )
    return {
        context: "test" if time is not None and time >= first else "train" for context, time in times.items()
    }


def near_test_texts(
    texts: Sequence[str], split: Sequence[str], threshold: float | Literal["off"]
) -> list[bool]:
    """Return, for each text, whether it nearly repeats a text of the test split.

    Args:
        texts: the texts of both splits.
        split: split of each text. A text of the test split is never a near-duplicate.
        threshold: similarity from which a text is a near-duplicate; "off": none is.
    """
    places = [i for i, which in enumerate(split) if which == "test"]
    if threshold == "off" or not places:
        return [False] * len(texts)
    index = NearDuplicates((texts[i] for i in places), lambda at: texts[places[at]], threshold)
    others = [i for i, which in enumerate(split) if which != "test"]
    near = [False] * len(texts)
    for place, found in zip(others, index.matches(texts[i] for i in others), strict=True):
        near[place] = found >= 0
    return near


class _Texts(Sequence[str]):
    """The texts of items. Each text is made on access, so that they are not all in memory."""

    def __init__(self, items: Sequence[Any], text: Callable[[Any], str]) -> None:
        self._items, self._text = items, text

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, at: int) -> str:  # type: ignore[override]
        return self._text(self._items[at])


def drop_near_duplicates(
    items: Sequence[Item],
    split: Callable[[Item], str],
    text: Callable[[Item], str],
    threshold: float | Literal["off"],
    reason: str,
    tally: Tally,
) -> list[Item]:
    """Drop training items whose text nearly repeats a text of the test split.

    Args:
        items: items of both splits.
        split: returns the split of an item.
        text: returns the text of an item.
        threshold: similarity from which a text is a near-duplicate; "off" drops nothing.
        reason: name under which dropped items are counted.
        tally: the counts.
    """
    if threshold == "off":
        return list(items)
    splits = [split(item) for item in items]
    near = near_test_texts(_Texts(items, text), splits, threshold)
    tally.dropped[reason] += sum(near)
    return [item for item, copied in zip(items, near, strict=True) if not copied]


def drop_across_splits(
    items: Sequence[Item],
    split: Callable[[Item], str],
    key: Callable[[Item], Hashable],
    reason: str,
    tally: Tally,
) -> list[Item]:
    """Drop training items whose key also occurs in the test split.

    Args:
        items: items of both splits.
        split: returns the split of an item.
        key: returns the value that is equal for duplicates.
        reason: name under which dropped items are counted.
        tally: the counts.
    """
    # The training item is dropped and not the test item, because a smaller test split changes the
    # measurement.
    in_test = {key(item) for item in items if split(item) == "test"}
    if not in_test:
        return list(items)
    kept = [item for item in items if split(item) == "test" or key(item) not in in_test]
    tally.dropped[reason] += len(items) - len(kept)
    return kept


def cap(
    items: Sequence[Item],
    *,
    split: Callable[[Item], str],
    context: Callable[[Item], str],
    name: Callable[[Item], str],
    limits: tuple[int | None, int | None],
    seed: int,
    tally: Tally,
) -> list[Item]:
    """Keep a limited number of items of each split, in their original order.

    Training keeps whole contexts, so that its examples still share prefixes. The test split is thinned evenly
    over all contexts, because its intervals resample contexts and need many.

    Args:
        items: items of both splits.
        split: returns the split of an item.
        context: returns the id of an item's context.
        name: returns the id of an item.
        limits: maximum number of items of (train, test); None: no limit.
        seed: seed of the choice of items.
        tally: counts the dropped items.
    """
    kept: set[int] = set()
    for which, limit in zip(("train", "test"), limits, strict=True):
        places = [i for i, item in enumerate(items) if split(item) == which]
        if limit is not None and len(places) > limit:
            if which == "train":
                # Sorting by the context's hash makes its items adjacent, so the limit cuts at most one
                # context.
                order = {c: seeded_hash(seed, "cap", c) for c in {context(items[i]) for i in places}}
                places.sort(key=lambda i: (order[context(items[i])], i))
            else:
                places.sort(key=lambda i: seeded_hash(seed, "cap", name(items[i])))
            tally.dropped[f"over_max_{which}_records"] += len(places) - limit
            places = places[:limit]
        kept.update(places)
    return [item for i, item in enumerate(items) if i in kept]


def require_training(splits: Iterable[str], task: str, what: str, instead: str = "") -> None:
    """Raise an error if all contexts of a corpus are in the test split.

    Args:
        splits: split of each context.
        task: name of the task, for errors.
        what: noun for its contexts, for errors.
        instead: what else the user can do, with a comma before it.

    Raises:
        InputError: the training split is empty.
    """
    seen = list(splits)
    if "train" not in seen:
        n = len(seen)
        raise InputError(
            f"{task}: none of the {n} {what} is in the training split; add data, lower test_share{instead} "
            "or change the seed"
        )


def has_link(text: str) -> bool:
    """Return whether a text contains a quotelink (`>>123`), which reveals the answer."""
    return _LINK.search(text) is not None
