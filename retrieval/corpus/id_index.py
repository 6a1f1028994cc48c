"""An index of ids on disk, for millions of rows. A Python dict would take about 100 bytes for each id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.corpus.mapped_items import Items, load_array, save_array


def id_hashes(ids: Iterable[str], count: int = -1) -> np.ndarray:
    """Return uint64[n]: a hash of each id, the same on every machine.

    `count` is the number of ids, or -1 if it is not known.
    """
    return np.fromiter((_id_hash(key) for key in ids), dtype=np.uint64, count=count)


def _id_hash(key: str) -> int:
    # hashlib, not jora_core.base.digests: eight raw bytes, of an id that may hold half of a surrogate pair.
    return int.from_bytes(
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _key_of(items: Items[Any], field: str) -> Callable[[int], str]:
    # A stored column is read alone. A property (such as `context_id`) needs the whole item.
    if field in items.names:
        return lambda place: items.value(field, place)
    return lambda place: getattr(items[place], field)


class IdIndex:
    """An index from the ids of `items` to their places: sorted hashes on disk, 16 bytes for each id.

    Different ids with the same hash are distinguished by comparing the ids. `field` names the id in the
    items.
    """

    def __init__(self, folder: Path, items: Items[Any], field: str = "id") -> None:
        self._hashes = load_array(folder / "id-hashes.npy")
        self._places = load_array(folder / "id-places.npy")
        self._key = _key_of(items, field)

    @classmethod
    def build(cls, folder: Path, items: Items[Any], field: str = "id") -> IdIndex:
        """Write the two arrays of the index below `folder` and open the index.

        Args:
            folder: folder of the arrays.
            items: the rows.
            field: field or property of a row that is its id.
        """
        folder.mkdir(parents=True, exist_ok=True)
        keys = (getattr(item, field) for item in items)
        hashes = id_hashes(keys, len(items))
        # Stable, so that of equal ids the first row comes first.
        order = np.argsort(hashes, kind="stable")
        save_array(folder / "id-hashes.npy", hashes[order])
        save_array(folder / "id-places.npy", order)
        return cls(folder, items, field)

    def find(self, key: str) -> int:
        """Return the place of an id, or -1 for an unknown one.

        Of several rows with the same id, the place of the first is returned.
        """
        wanted = np.uint64(_id_hash(key))
        at = int(np.searchsorted(self._hashes, wanted))
        # More than one turn only for equal ids, or for two ids with one 64-bit hash.
        while at < len(self._hashes) and self._hashes[at] == wanted:
            place = int(self._places[at])
            if self._key(place) == key:
                return place
            at += 1
        return -1

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) >= 0

    def __getitem__(self, key: str) -> int:
        place = self.find(key)
        if place < 0:
            raise KeyError(key)
        return place
