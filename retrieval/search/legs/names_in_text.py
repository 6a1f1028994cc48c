"""Find the authors that a text names, and the posts of an author. Several legs use this."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def name_position(folded_text: str, author: str) -> int:
    """Return the position at which a case-folded text first names an author, or -1.

    A name counts only as a whole word. One-letter names are ignored, because they are common words too.
    """
    name = author.casefold()
    # The plain search is much faster than the regular expression, and most texts contain no name.
    at = folded_text.find(name) if len(name) >= 2 else -1
    if at < 0:
        return -1
    # `\b` would not do: a nickname may begin or end with a sign, as `|trey|` does. One character before the
    # match is kept, so that the look-behind sees it.
    match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded_text[max(at - 1, 0) :])
    return match.start() + max(at - 1, 0) if match else -1


def named_places(text: str, authors: Sequence[str]) -> np.ndarray:
    """Return int64: the places of the posts whose author a text names.

    Posts of an author whose name begins the text come first. Otherwise, later posts come first.
    """
    folded = text.casefold()
    named: dict[str, int] = {}
    # Each author once: a window of a hundred posts has a dozen authors. The order of the set does not reach
    # the result, which is sorted below.
    for author in set(authors):
        at = name_position(folded, author)
        if at >= 0:
            named[author] = 0 if at <= 1 else 1  # position 1 is `@name`
    places = [place for place, author in enumerate(authors) if author in named]
    return np.array(sorted(places, key=lambda p: (named[authors[p]], -p)), dtype=np.int64)


def places_by_author(author: str, authors: Sequence[str]) -> np.ndarray:
    """Return int64: the places of the posts of an author, latest first."""
    return np.array([p for p in range(len(authors) - 1, -1, -1) if authors[p] == author], dtype=np.int64)
