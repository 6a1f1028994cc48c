"""A search for ids among millions of rows, without a Python dict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.corpus.mapped_items import Items, load_array, save_array


def id_hashes(ids: Iterable[str], count: int = -1) -> np.ndarray:
    """uint64: a hash of each id, the same on every machine."""
    return np.fromiter((_id_hash(key) for key in ids), dtype=np.uint64, count=count)


def _id_hash(key: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _key_of(items: Items[Any], field: str) -> Callable[[int], str]:
    if field in items.names:
        return lambda place: items.value(field, place)
    return lambda place: getattr(items[place], field)


class IdIndex:
    """From an id to its place among `items`: sorted hashes on disk, 16 bytes an id.

    Equal hashes of different ids are told apart by the ids themselves.
    """

    def __init__(self, folder: Path, items: Items[Any], field: str = "id") -> None:
        self._hashes = load_array(folder / "id-hashes.npy")
        self._places = load_array(folder / "id-places.npy")
        self._key = _key_of(items, field)

    @classmethod
    def build(cls, folder: Path, items: Items[Any], field: str = "id") -> IdIndex:
        """Writes the two arrays below `folder` and opens them."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = (getattr(item, field) for item in items)
        hashes = id_hashes(keys, len(items))
        order = np.argsort(hashes, kind="stable")
        save_array(folder / "id-hashes.npy", hashes[order])
        save_array(folder / "id-places.npy", order)
        return cls(folder, items, field)

    def find(self, key: str) -> int:
        """The id's place, -1 where it is none of the ids; the first one where it occurs twice."""
        wanted = np.uint64(_id_hash(key))
        at = int(np.searchsorted(self._hashes, wanted))
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

    def first_repeat(self) -> tuple[int, int] | None:
        """(place of the first, place of the second) of the id that is used again earliest, or None."""
        hashes = np.asarray(self._hashes)
        found: tuple[int, int] | None = None
        for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            second = int(self._places[at + 1])
            first = self.find(self._key(second))
            if first != second and (found is None or second < found[1]):
                found = first, second
        return found
