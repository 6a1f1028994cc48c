"""Reply links as sets, counted as `graph-eval.py` of irc-disentanglement counts them (arXiv:1810.11118).

A link is a pair of message numbers (message, parent), where the message is the later one. A message that
starts a conversation has a link to itself, which counts like every other link. A message may have several
parents. Links of all logs are counted together: precision, recall and F1 are no means over logs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from retrieval.evaluation.measures.precision_recall import PrecisionRecall, of_counts

#: (message, parent); the message is the later one, or the same in a link to itself.
Link = tuple[int, int]


@dataclass(frozen=True)
class LinkCounts:
    """Numbers of right links, of predicted links, and of predicted links that are right."""

    gold: int
    predicted: int
    matched: int

    @property
    def scores(self) -> PrecisionRecall:
        """Precision and recall, with their F1."""
        return of_counts(self.matched, self.predicted, self.gold)


def annotated_links(lines: Iterable[str]) -> set[Link]:
    """Return the links of an annotation file, whose lines are `PARENT MESSAGE -`.

    The largest number of a line is the message, wherever it stands. All other numbers of the line are
    parents; a line with one number is a link to itself.

    Raises:
        ValueError: a line has something other than numbers and `-`.
    """
    links: set[Link] = set()
    for line in lines:
        numbers = [int(word) for word in line.split() if word != "-"]
        if numbers:
            message = max(numbers)
            numbers.remove(message)
            links |= {(message, parent) for parent in numbers or [message]}
    return links


def count_links(
    gold: Mapping[str, Collection[Link]], predicted: Mapping[str, Collection[Link]]
) -> LinkCounts:
    """Count the links of all logs.

    A log without predictions has missed all its links, and predictions for an unknown log are all wrong.

    Args:
        gold: right links by log.
        predicted: predicted links by log.
    """
    return LinkCounts(
        sum(len(set(links)) for links in gold.values()),
        sum(len(set(links)) for links in predicted.values()),
        sum(len(set(links) & set(predicted.get(log, ()))) for log, links in gold.items()),
    )
