"""The edges of a graph of artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Edge = tuple[str, str]


def edges_of(manifests: Mapping[str, Mapping[str, Any]]) -> list[Edge]:
    """Return the pairs of stages, from the one that is read to the one that reads it."""
    return [
        (other, name)
        for name, manifest in manifests.items()
        for other in manifest["upstream"]
        if other in manifests
    ]


def direct(edges: Sequence[Edge]) -> list[Edge]:
    """Remove edges between nodes that a longer path connects too, which keeps a graph readable."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)

    def reaches(start: str, end: str) -> bool:
        return end in after.get(start, ()) or any(reaches(middle, end) for middle in after.get(start, ()))

    return [
        (start, end)
        for start, end in edges
        if not any(middle != end and reaches(middle, end) for middle in after[start])
    ]
