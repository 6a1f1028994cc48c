"""Rules without a model that say which earlier post each post of a thread answers.

Each rule gets the posts in time order and returns, for each of them, the place of the post that it answers,
or its own place if it starts a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.corpus.types import Post

Rule = Callable[[Sequence[Post]], list[int]]


def previous_post(posts: Sequence[Post]) -> list[int]:
    """Answer the post before; the first post starts a conversation."""
    return [max(0, place - 1) for place in range(len(posts))]


def previous_other_author(posts: Sequence[Post]) -> list[int]:
    """Answer the last post of another author; without one, the post before."""
    found: list[int] = []
    for place, post in enumerate(posts):
        before = max(0, place - 1)
        # The run of posts of one author has one answer, so each post looks at the one before it only.
        same = place > 0 and posts[before].author == post.author
        other = found[before] if same else before
        found.append(other if other < place and posts[other].author != post.author else before)
    return found


def addressed(posts: Sequence[Post]) -> list[int | None]:
    """Return the last post of the other person whose name stands first in each post; None without one."""
    found: list[int | None] = []
    last: dict[str, int] = {}
    for place, post in enumerate(posts):
        name, author = post.text.split(" ")[0].rstrip(":,").casefold(), post.author.casefold()
        found.append(last.get(name) if name != author else None)
        last[author] = place
    return found


def addressed_then_previous(posts: Sequence[Post]) -> list[int]:
    """Answer the last post of the person whose name stands first; else, if the author spoke before, the post
    before.

    Who speaks for the first time, and names nobody who has spoken, starts a conversation.
    """
    found: list[int] = []
    known: set[str] = set()
    for place, (post, named) in enumerate(zip(posts, addressed(posts), strict=True)):
        before = place - 1 if post.author.casefold() in known else place
        found.append(before if named is None else named)
        known.add(post.author.casefold())
    return found


@dataclass(frozen=True)
class RuleAnswers:
    """What the rules say about the posts of a thread, each by place."""

    previous_other_author: list[int]
    addressed_then_previous: list[int]
    addressed: list[int | None]

    @classmethod
    def of(cls, posts: Sequence[Post]) -> RuleAnswers:
        """Return the answers for the posts of a thread."""
        return cls(previous_other_author(posts), addressed_then_previous(posts), addressed(posts))


#: By the column of `links.parquet`.
RULES: dict[str, Rule] = {
    "previous_post": previous_post,
    "previous_other_author": previous_other_author,
    "addressed_then_previous": addressed_then_previous,
}
