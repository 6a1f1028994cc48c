"""Windows: contexts of the posts directly before a comment, shared by the comments of one thread.

A window starts at a multiple of its stride. Comments that follow one another therefore mostly have the same
start, and the posts in one prompt are the first posts in the next one. Training computes such a shared prefix
once.
"""

from __future__ import annotations

from collections.abc import Sequence


def window_stride(n_contexts: int) -> int:
    """Return the stride of windows of at most `n_contexts` posts, in posts.

    Windows start at multiples of the stride.
    """
    return max(1, n_contexts // 2)


def window_start(place: int, n_contexts: int) -> int:
    """Return the place of the first post in the window of the comment at `place`.

    A window holds at most `n_contexts` posts, and more than half as many unless the thread has fewer.
    """
    stride = window_stride(n_contexts)
    # Rounded up to a multiple of the stride: down, the window would hold more than `n_contexts` posts.
    return -(-max(0, place - n_contexts) // stride) * stride


def within_budget(costs: Sequence[int], budget: int, stride: int) -> int:
    """Return the number of posts of a window that fit a budget of tokens.

    The window loses its oldest posts a stride at a time, so that its start stays a multiple of the stride and
    the window is shared. The last stride always stays, even if it exceeds the budget.

    Args:
        costs: number of tokens of each post, newest first.
        budget: maximum number of tokens of all posts.
        stride: number of posts that are dropped together.
    """
    left = len(costs)
    while left > stride and sum(costs[:left]) > budget:
        left -= stride
    return left
