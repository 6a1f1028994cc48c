"""Shorten the texts of a context to a budget of tokens.

Whole texts are dropped first, in order of lowest priority, but never a text that holds the answer. If the
texts with the answer alone are too long, they lose the sentences that are farthest from the answer, but never
the sentence with the answer. A text stays whole if the place of its answer is unknown. The caller counts a
context that is then over the budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from retrieval.corpus.tokenizer_folder import tokenizer_folder
from retrieval.settings.context import ContextConfig
from retrieval.text.sentences import sentence_spans
from retrieval.text.token_counter import load_counter

Count = Callable[[str], int]
_WORD = re.compile(r"\S+")
#: Words are shorter on average in every script with blanks.
_LONGEST_WORD = 40


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
    spans = sentence_spans(text)
    at = text.find(wanted)
    holding = [i for i, (start, end) in enumerate(spans) if start < at + len(wanted) and at < end]
    if at < 0 or not holding:
        return text
    low, high = holding[0], holding[-1] + 1

    def part(first: int, last: int) -> str:
        return text[spans[first][0] : spans[last - 1][1]]

    while True:
        # The sentence before an answer explains it more often than the sentence after it, so it is tried
        # first.
        for first, last in ((low - 1, high), (low, high + 1)):
            if first >= 0 and last <= len(spans) and count(part(first, last)) <= budget:
                low, high = first, last
                break
        else:
            return part(low, high)


def _head(text: str, budget: int, count: Count) -> str:
    """Return as many of the first words as the budget allows, at least one."""
    # Tokens of a part are not the sum of its words' tokens, so the length is found by bisection.
    ends = [word.end() for word in _WORD.finditer(text)]
    # Scripts without blanks have no words to cut between.
    if len(ends) * _LONGEST_WORD < len(text):
        ends = list(range(1, len(text) + 1))
    low, high = 1, max(len(ends), 1)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[: ends[middle - 1]]) <= budget:
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]] if ends else text
