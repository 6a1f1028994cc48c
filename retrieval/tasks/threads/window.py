"""Windows: the posts directly before a comment, as contexts that the comments of one thread share.

A window starts at a multiple of its stride. Comments that follow one another therefore mostly have the same
start, and the posts in one prompt are the first posts in the next one. Training computes such a shared prefix
once.
"""

from __future__ import annotations

from collections.abc import Sequence


def window_stride(n_contexts: int) -> int:
    """Return by how many posts the start of a window of at most `n_contexts` posts moves at once."""
    return max(1, n_contexts // 2)


def window_start(place: int, n_contexts: int) -> int:
    """Return the place of the first post in the window of the comment at `place`.

    A window holds at most `n_contexts` posts, and more than half as many unless the thread has fewer.
    """
    stride = window_stride(n_contexts)
    # Rounded up to a multiple of the stride: down, the window would hold more than `n_contexts` posts.
    return -(-max(0, place - n_contexts) // stride) * stride


def within_budget(costs: Sequence[int], budget: int, stride: int) -> int:
    """Return how many of a window's posts stay within a budget of tokens.

    The window loses its oldest posts a stride at a time, so that its start stays a multiple of the stride and
    the window is shared. A last stride stays, within the budget or not.

    Args:
        costs: tokens of each post, the newest first.
        budget: the most tokens of all posts.
        stride: how many posts go at once.
    """
    left = len(costs)
    while left > stride and sum(costs[:left]) > budget:
        left -= stride
    return left
