"""Windows: the posts directly before a comment, as contexts that the comments of one thread share.

A window starts at a multiple of its stride. So comments that follow one another mostly have the same start,
and the posts in the prompt of each are the beginning of the next one's.
"""

from __future__ import annotations

from collections.abc import Sequence


def window_stride(n_contexts: int) -> int:
    """How many posts the start of a window of at most `n_contexts` moves at once."""
    return max(1, n_contexts // 2)


def window_start(place: int, n_contexts: int) -> int:
    """Place of the first post in the window of the comment at `place`.

    Never more than `n_contexts` posts are in it; more than half of that, or all that there are.
    """
    stride = window_stride(n_contexts)
    return -(-max(0, place - n_contexts) // stride) * stride


def within_budget(costs: Sequence[int], budget: int, stride: int) -> int:
    """How many of a window's posts stay where it loses its oldest, a stride at a time, until the rest fits.

    Args:
        costs: tokens of each post, the newest first.

    Once no more than a stride is left, that many stay, within the budget or not.
    """
    left = len(costs)
    while left > stride and sum(costs[:left]) > budget:
        left -= stride
    return left
