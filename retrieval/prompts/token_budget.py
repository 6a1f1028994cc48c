"""Contexts within a budget of tokens: what is given up when the retrieved texts are too long.

Whole texts are dropped first, the least wanted first, but never one that holds the answer. If those alone are
too long, they lose sentences, the ones farthest from the answer first, and never the sentence with the
answer. A text of which it is not known where its answer stands stays whole; a context that is then over the
budget is counted by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from retrieval.corpus.source_files import tokenizer_folder
from retrieval.settings.context import ContextConfig
from retrieval.text.sentences import sentences
from retrieval.text.token_counter import load_counter

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """Return the number of words, the unit of budgets where no tokenizer is given."""
    return len(text.split())


def token_count(config: ContextConfig) -> Count:
    """Return what budgets are counted in: tokens of the configured tokenizer, where one is given, else words.

    Raises:
        InputError: the tokenizer cannot be read.
    """
    if not config.counts_tokens:
        return count_words
    return load_counter(tokenizer_folder(config)).count


@dataclass(frozen=True)
class Fitted:
    """Texts within a budget.

    Attributes:
        texts: in the order given, None for a text that was dropped.
        shortened: whether some text was dropped or cut.
        over: whether what is left is over the budget all the same.
    """

    texts: tuple[str | None, ...]
    shortened: bool = False
    over: bool = False


def fit(
    texts: Sequence[str],
    budget: int,
    count: Count,
    protected: Collection[int] = (),
    keep: Callable[[str], str | None] = lambda text: None,
    fixed: Sequence[int] = (),
) -> Fitted:
    """Return the texts within a budget of tokens.

    Without a protected text the most wanted one stays, cut at its end to the budget.

    Args:
        texts: the texts, the most wanted first.
        budget: the most tokens of all texts together.
        count: counts the tokens of a text.
        protected: places of texts that are not dropped (in training: those that hold the answer).
        keep: returns the sentence of a protected text that must stay; None: unknown, so the text stays whole.
        fixed: tokens that stand beside each text while it is there (its title, its label).
    """
    # None marks a dropped text, so that the places of the others stay.
    kept: list[str | None] = list(texts)
    beside = list(fixed) or [0] * len(texts)
    # The sum over the texts is an estimate of the joined prompt: at the seams, tokens may merge.
    costs = [count(text) + more for text, more in zip(texts, beside, strict=True)]
    total = sum(costs)
    if total <= budget:
        return Fitted(tuple(kept))
    free = [i for i in range(len(texts)) if i not in protected]
    # The best text stays, or the context could become empty.
    if not protected:
        free = free[1:]
    for place in reversed(free):
        if total <= budget:
            break
        kept[place] = None
        total -= costs[place]
    for place in reversed(range(len(texts))):
        text = kept[place]
        if total <= budget or text is None:
            continue
        # What the other texts leave for this one.
        left = budget - (total - costs[place]) - beside[place]
        wanted = keep(text) if place in protected else ""
        # It is not known where the answer stands, so no sentence can be given up.
        if wanted is None:
            continue
        short = _around(text, wanted, left, count) if wanted else _head(text, left, count)
        kept[place] = short
        total += count(short) + beside[place] - costs[place]
    return Fitted(tuple(kept), True, total > budget)


def _around(text: str, wanted: str, budget: int, count: Count) -> str:
    """The longest run of sentences within the budget around the wanted one, which always stays."""
    parts = sentences(text)
    if wanted not in parts:
        return text
    low = parts.index(wanted)
    high = low + 1
    while True:
        # What follows an answer explains it less often than what stands before: the earlier one first.
        for first, last in ((low - 1, high), (low, high + 1)):
            if first >= 0 and last <= len(parts) and count(" ".join(parts[first:last])) <= budget:
                low, high = first, last
                break
        else:
            return " ".join(parts[low:high])


def _head(text: str, budget: int, count: Count) -> str:
    """As many of the first words as are within the budget, at least one."""
    # Tokens of a part are not the sum of its words' tokens, so the length is found by bisection.
    words = text.split()
    low, high = 1, max(len(words), 1)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= budget:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
