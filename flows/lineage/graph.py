"""The graph of a chain of artifacts: its edges, and a drawing as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.lineage.chain import SHORT, Chain, Link

Edge = tuple[str, str]
MOST_FILES = 6  # input files of one stage that the drawing names


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


def draw(chain: Chain) -> list[str]:
    """Draw the chain as a tree of text, from its last artifact back to the input files.

    An artifact that several others read is drawn once, below the first of them.
    """
    if not chain.links:
        return []
    links = {link.manifest["stage"]: link for link in chain.links}
    back: dict[str, list[str]] = {}
    for start, end in direct(edges_of(chain.manifests)):
        back.setdefault(end, []).append(start)
    lines: list[str] = []
    drawn: set[str] = set()

    def add(name: str, first: str, rest: str) -> None:
        if name in drawn:
            lines.append(f"{first}{name} (above)")
            return
        drawn.add(name)
        lines.append(f"{first}{_described(links[name], chain)}")
        children = [*back.get(name, ()), *_inputs(links[name])]
        for index, child in enumerate(children):
            last = index == len(children) - 1
            branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
            if child in links:
                add(child, rest + branch, rest + below)
            else:
                lines.append(f"{rest}{branch}{child}")

    add(chain.links[-1].manifest["stage"], "", "")
    return lines


def _described(link: Link, chain: Chain) -> str:
    manifest = link.manifest
    stage, key = link.name
    count = len(manifest["outputs"])
    text = f"{stage} {key[:SHORT]}  {count} file{'s' if count != 1 else ''}"
    if ended := manifest.get("ended"):
        text += f", {ended[:16].replace('T', ' ')} UTC"
    wrong = [one for one in chain.findings if one.what.startswith(f"{stage}/{key[:SHORT]}")]
    return text + (f"  {wrong[0].state.upper()}" if wrong else "")


def _inputs(link: Link) -> list[str]:
    """Return a line for each input file; of many, for the first ones."""
    files = [f"{item['path']}  {item['sha256'][:SHORT]}" for item in link.manifest["inputs"].values()]
    more = len(files) - MOST_FILES
    return files if more <= 1 else [*files[:MOST_FILES], f"and {more} more input files"]
