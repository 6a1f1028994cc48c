"""Shorten the texts of a context to a budget of tokens.

Whole texts are dropped first, in order of lowest priority, but never a text that holds the answer. If the
texts with the answer alone are too long, they lose the sentences that are farthest from the answer, but never
the sentence with the answer. A text stays whole if the place of its answer is unknown. The caller counts a
context that is then over the budget.
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
    """Return the number of words of a text, which is the unit of budgets without a tokenizer."""
    return len(text.split())


def token_count(config: ContextConfig) -> Count:
    """Return the function that measures budgets: tokens of the configured tokenizer, or words without one.

    Raises:
        InputError: the tokenizer cannot be read.
    """
    if not config.counts_tokens:
        return count_words
    return load_counter(tokenizer_folder(config)).count


@dataclass(frozen=True)
class Fitted:
    """Texts that were shortened to a budget.

    Attributes:
        texts: the texts in their given order, None for a dropped text.
        shortened: whether a text was dropped or cut.
        over: whether the remaining texts still exceed the budget.
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
    """Shorten texts to a budget of tokens.

    Without a protected text, the text with the highest priority stays and is cut at its end to the budget.

    Args:
        texts: the texts, highest priority first.
        budget: maximum number of tokens of all texts together.
        count: counts the tokens of a text.
        protected: places of texts that are never dropped (in training: the texts with the answer).
        keep: returns the sentence of a protected text that must stay; None: unknown, so the text stays whole.
        fixed: tokens that each kept text costs in addition (its title, its label).
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
        # The place of the answer is unknown, so no sentence can be dropped.
        if wanted is None:
            continue
        short = _around(text, wanted, left, count) if wanted else _head(text, left, count)
        kept[place] = short
        total += count(short) + beside[place] - costs[place]
    return Fitted(tuple(kept), True, total > budget)


def _around(text: str, wanted: str, budget: int, count: Count) -> str:
    """Return the longest run of sentences around the wanted sentence within the budget. That sentence always
    stays.
    """
    parts = sentences(text)
    if wanted not in parts:
        return text
    low = parts.index(wanted)
    high = low + 1
    while True:
        # The sentence before an answer explains it more often than the sentence after it, so it is tried
        # first.
        for first, last in ((low - 1, high), (low, high + 1)):
            if first >= 0 and last <= len(parts) and count(" ".join(parts[first:last])) <= budget:
                low, high = first, last
                break
        else:
            return " ".join(parts[low:high])


def _head(text: str, budget: int, count: Count) -> str:
    """Return as many of the first words as the budget allows, at least one."""
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
