"""The graph of a chain of artifacts as text."""

from __future__ import annotations

from flows.lineage.chain import SHORT, Chain, Link
from flows.lineage.edges import direct, edges_of
from retrieval.text.labels import plural

MOST_FILES = 6  # input files of one stage that the drawing names


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
    text = f"{stage} {key[:SHORT]}  {plural(len(manifest['outputs']), 'file')}"
    if ended := manifest.get("ended"):
        text += f", {ended[:16].replace('T', ' ')} UTC"
    wrong = [one for one in chain.findings if one.what.startswith(f"{stage}/{key[:SHORT]}")]
    return text + (f"  {wrong[0].state.upper()}" if wrong else "")


def _inputs(link: Link) -> list[str]:
    """Return a line for each input file; of many, for the first ones."""
    files = [f"{item['path']}  {item['sha256'][:SHORT]}" for item in link.manifest["inputs"].values()]
    more = len(files) - MOST_FILES
    return files if more <= 1 else [*files[:MOST_FILES], f"and {more} more input files"]
