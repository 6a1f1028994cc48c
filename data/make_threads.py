"""Discussion threads in 4chan's API JSON, seeded: most posts answer an earlier one, and say so by what they
mention.

A post states something of its own (two nouns, perhaps an adjective, a number with its unit, a place). A reply
adds a clause that ties it to its parent: one to three things the parent said, a quote, a name, or the
conventions of threads ("op", "this"). What a reply states of its own borrows words from *other* posts, so
that counting shared words is misled and the clause has to be read. Every tie is checked to point at one
earlier post only.
"""

from __future__ import annotations

import html
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lexicon as lex


@dataclass
class Post:
    """One post: its author, its text and the indices of the posts it answers."""

    author: str
    text: str = ""
    parents: list[int] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # slots of its own statement
    statement: str = ""

    @property
    def words(self) -> set[str]:
        return set(self.text.replace("?", " ").replace(",", " ").replace(":", " ").split())


def make_thread(rng: random.Random, n_posts: int) -> tuple[str, list[Post]]:
    """A topic and its `n_posts` posts in order of time."""
    topic = rng.choice(sorted(lex.TOPICS))
    other = rng.choice(sorted(lex.TOPICS))
    nouns = sorted(set(lex.TOPICS[topic]) | set(rng.sample(lex.TOPICS[other], 6)))
    pool = rng.sample(nouns, min(len(nouns), max(8, n_posts)))
    authors = rng.sample(lex.NAMES, max(3, min(12, n_posts * 2 // 3)))
    posts = [_opening(rng, topic, pool, authors[0])]
    while len(posts) < n_posts:
        author = rng.choice([name for name in authors if name != posts[-1].author])
        post = Post(author)
        ties: list[str] = []
        if rng.random() < 0.85:
            for _ in range(2 if len(posts) > 3 and rng.random() < 0.08 else 1):
                tie = _tie(rng, posts, author, post.parents)
                if tie is not None:
                    ties.append(tie[1])
                    post.parents.append(tie[0])
        post.statement, post.facts = _statement(rng, _own_nouns(rng, posts, post.parents, pool))
        parts = [*ties, post.statement] if rng.random() < 0.7 else [post.statement, *ties]
        post.text = " . ".join(parts).replace("? .", "?") if len(parts) > 1 else parts[0]
        posts.append(post)
    return topic, posts


def _opening(rng: random.Random, topic: str, pool: list[str], author: str) -> Post:
    a, b = rng.sample(pool, 2)
    facts = {"a": a, "b": b, "j": rng.choice(lex.ADJECTIVES), "p": rng.choice(lex.PLACES)}
    facts |= {"k": str(rng.randint(2, 99)), "u": rng.choice(lex.UNITS), "t": topic}
    template = rng.choice(lex.OPENINGS)
    text = template.format(**facts)
    return Post(author, text, [], _used(template, facts), text)


def _statement(rng: random.Random, nouns: list[str]) -> tuple[str, dict[str, str]]:
    facts = {"a": nouns[0], "b": nouns[1], "j": rng.choice(lex.ADJECTIVES), "p": rng.choice(lex.PLACES)}
    facts |= {"k": str(rng.randint(2, 99)), "u": rng.choice(lex.UNITS)}
    template = rng.choice(lex.STATEMENTS)
    return template.format(**facts), _used(template, facts)


def _used(template: str, facts: dict[str, str]) -> dict[str, str]:
    return {slot: value for slot, value in facts.items() if slot in "ab" or "{" + slot + "}" in template}


def _own_nouns(rng: random.Random, posts: list[Post], parents: list[int], pool: list[str]) -> list[str]:
    """Two nouns for a post's own statement; in a reply often words of posts it does not answer."""
    others = [post for index, post in enumerate(posts) if index not in parents]
    if parents and others and rng.random() < 0.6:
        borrowed = [rng.choice(others).facts[slot] for slot in "ab" if rng.random() < 0.8 and others]
        nouns = list(dict.fromkeys([*borrowed, *rng.sample(pool, 3)]))
    else:
        nouns = rng.sample(pool, 2)
    return nouns[:2] if rng.random() < 0.5 else nouns[1::-1]


def _tie(rng: random.Random, posts: list[Post], author: str, taken: list[int]) -> tuple[int, str] | None:
    """A parent and the clause that points at it and at no other earlier post."""
    last = len(posts) - 1
    kind = rng.random()
    if kind < 0.10 and last > 0 and not taken and posts[0].author != author:
        return 0, rng.choice(lex.TO_OPENING)
    if kind < 0.22 and not taken:
        return last, rng.choice(lex.TO_PREVIOUS)
    for _ in range(30):
        index = rng.randrange(len(posts))
        if index == last and rng.random() < 0.6:  # the post just before is an easy guess: keep it rare
            continue
        if index in taken or posts[index].author == author:
            continue
        clause = _content_tie(rng, posts, index)
        if clause is not None:
            return index, clause
    return None


def _content_tie(rng: random.Random, posts: list[Post], index: int) -> str | None:
    facts, parent = posts[index].facts, posts[index]
    others = [post for position, post in enumerate(posts) if position != index]

    def unique(*words: str) -> bool:
        return not any(post.words.issuperset(words) for post in others)

    kind = rng.choices(
        ("two", "one", "adjective", "number", "place", "associate", "name", "quote"),
        (40, 14, 12, 8, 6, 8, 10, 8),
    )[0]
    x, y = (facts["a"], facts["b"]) if rng.random() < 0.5 else (facts["b"], facts["a"])
    has = parent.words
    if kind == "two" and {x, y} <= has and unique(x, y):
        return rng.choice(lex.TIES_TWO).format(x=x, y=y)
    if kind == "one" and x in has and unique(x):
        return rng.choice(lex.TIES_ONE).format(x=x)
    if kind == "adjective" and "j" in facts:
        template = next((s for s in lex.STATEMENTS + lex.OPENINGS if _matches(s, parent.statement)), "")
        noun = "a" if "{j} {a}" in template else "b" if "{j} {b}" in template else None
        if noun and unique(facts["j"], facts[noun]):
            return rng.choice(lex.TIES_ADJECTIVE).format(j=facts["j"], x=facts[noun])
    if kind == "number" and "k" in facts and unique(facts["k"], facts["u"]):
        return rng.choice(lex.TIES_NUMBER).format(k=facts["k"], u=facts["u"])
    if kind == "place" and "p" in facts and unique(facts["p"]):
        return rng.choice(lex.TIES_PLACE).format(p=facts["p"])
    if kind == "associate" and x in has and x in lex.ASSOCIATES and unique(x) and unique(lex.ASSOCIATES[x]):
        return rng.choice(lex.TIES_ASSOCIATE).format(x=lex.ASSOCIATES[x])
    if kind == "name" and max(i for i, post in enumerate(posts) if post.author == parent.author) == index:
        return rng.choice(lex.TIES_NAME).format(n=parent.author)
    if kind == "quote":
        words = parent.statement.replace("?", "").split()
        start = rng.randrange(max(1, len(words) - 3))
        quote = " ".join(words[start : start + 4])
        if facts["a"] in quote and not any(quote in post.text for post in others):
            return rng.choice(lex.TIES_QUOTE).format(q=quote)
    return None


def _matches(template: str, statement: str) -> bool:
    """Whether `statement` was made from `template`: the words outside its slots agree."""
    ours, theirs = template.split(), statement.split()
    return len(ours) == len(theirs) and all(a == b for a, b in zip(ours, theirs, strict=True) if "{" not in a)


def to_api_json(thread_no: int, topic: str, posts: list[Post]) -> dict:
    """The thread as 4chan's API gives it (github.com/4chan/4chan-API, pages/Threads.md)."""
    numbers = [thread_no + 3 * index for index in range(len(posts))]
    start = 1_600_000_000 + thread_no
    rows = []
    for index, post in enumerate(posts):
        links = [
            f'<a href="#p{numbers[parent]}" class="quotelink">&gt;&gt;{numbers[parent]}</a><br>'
            for parent in post.parents
        ]
        row = {
            "no": numbers[index],
            "resto": 0 if index == 0 else thread_no,
            "time": start + 60 * index,
            "name": post.author,
            "com": "".join(links) + html.escape(post.text),
        }
        if index == 0:
            row["sub"] = topic
        rows.append(row)
    return {"posts": rows}


def threads(seed: int, count: int, shortest: int = 6, longest: int = 30) -> Iterator[tuple[str, list[Post]]]:
    """`count` threads of `shortest` to `longest` posts; the same seed gives the same threads."""
    rng = random.Random(f"threads-{seed}")
    for _ in range(count):
        yield make_thread(rng, rng.randint(shortest, longest))


def write_threads(path: Path, seed: int, count: int) -> None:
    """One thread a line at `path`."""
    with path.open("w", encoding="utf-8") as out:
        for index, (topic, posts) in enumerate(threads(seed, count)):
            out.write(json.dumps(to_api_json(100_000 + 1_000 * index, topic, posts)) + "\n")
