"""The lessons of the tiny base model: find the same word again, find the post that holds some words, then
language about threads, tables and documents.

None of them is the task itself: which post a *comment answers* is what fine-tuning has to teach. All seeds
differ from the sample's. Looking things up is learned in small steps, because a model that starts with the
whole of it stays at chance for longer than anybody waits:

  pairs    words and names in pairs; after a word, its name
  posts    posts of one random word, later of many, each over its label; after some of its words, the label
  threads  generated threads, tables and documents with questions in the form of prompts
  mentions generated threads again, and below them some words of one post amid words of others: its label
  pointers the same with pieces of posts, names and places among them

The questions of a `threads` row share one pass over its context (they are the row's `suffixes`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import lexicon as lex
import pyarrow as pa
import pyarrow.parquet as pq
from make_documents import documents
from make_tables import tables
from make_threads import Post, make_thread

Segment = tuple[str, float]
Row = tuple[list[Segment], list[list[Segment]]]

HEAD = "### Instruction:\n{instruction}\n\n### Input:\n"
TAIL = "\n\n### Response:\n"
ABOUT_POSTS = "Answer the question about the posts."
ABOUT_TABLE = "Answer the question from the table."
ABOUT_DOCUMENTS = "Answer the question from the documents."
WORDS = sorted({word for words in lex.TOPICS.values() for word in words})
CONTENT = sorted({*WORDS, *lex.ASSOCIATES.values(), *lex.ADJECTIVES, *lex.PLACES, *map(str, range(2, 100))})
KNOWN = set(CONTENT)
FILLER = ("the", "a", "and", "of", "to", "in", "my", "is", "it", "with", "for", "on", "was", "i")

# How many different words, pairs at most.
PAIR_LEVELS = ((64, 8), (64, 8), (64, 8), (200, 8), (len(WORDS), 10), (len(WORDS), 10))
# Words of a post at least and at most, words asked for at most.
POST_LEVELS = ((1, 1, 1), (1, 2, 1), (1, 3, 2), (1, 5, 2), (2, 7, 3), (3, 9, 3), (4, 9, 4))


def label_of(post: Post, number: int) -> str:
    """What an answer calls a post."""
    return f"#{number} {post.author}"


def lines(posts: list[Post]) -> list[str]:
    """Posts as the pipeline's records show them: the text, and its label on a line of its own."""
    return [f"{post.text}\n{label_of(post, number)}" for number, post in enumerate(posts, 1)]


def row(instruction: str, context: str, weight: float, asked: list[tuple[str, str]]) -> Row:
    """A context with its questions; only the answers (and the context, by `weight`) are learned."""
    suffixes = [[(f"\n\n{question}{TAIL}", 0.0), (answer, 1.0)] for question, answer in asked]
    return [(HEAD.format(instruction=instruction), 0.0), (context, weight)], suffixes


def pairs_row(rng: random.Random, n_words: int, longest: int) -> Row:
    """Words with a name each, then the same words in any order: the name follows. `n_words` are used."""
    words = rng.sample(WORDS[:n_words], rng.randint(2, longest))
    pairs = [(word, rng.choice(lex.NAMES)) for word in words]
    segments = [("".join(f" {word} {name}" for word, name in pairs), 0.0)]
    for _ in range((62 - 2 * len(pairs)) // 2):
        word, name = rng.choice(pairs)
        segments += [(f" {word}", 0.0), (f" {name}", 1.0)]
    return segments, []


def posts_row(rng: random.Random, hardest: int) -> Row:
    """Posts of random words, no content word twice, and then some words of one of them: its label follows.

    `hardest` (0 to 6) bounds the posts' length, the words asked for, filler between them and, at 6, words of
    other posts or of none among those asked for.
    """
    level = hardest if rng.random() < 0.7 else rng.randint(0, hardest)
    shortest, longest, asked = POST_LEVELS[level]
    filler = 0.3 if level >= 5 else 0.0
    n_posts = rng.randint(2, 5 if level == 0 else 10)
    counts = [rng.randint(shortest, longest) for _ in range(n_posts)]
    drawn = rng.sample(CONTENT, sum(counts) + 8)
    pool, spare = iter(drawn), drawn[-8:]
    authors = rng.sample(lex.NAMES, max(2, min(n_posts, 7)))
    posts = [([next(pool) for _ in range(count)], rng.choice(authors)) for count in counts]
    shown = [f"{_text(rng, words, filler)}\n#{n} {name}\n\n" for n, (words, name) in enumerate(posts, 1)]
    segments = [("".join(shown), 0.0)]
    for _ in range(12):
        number = rng.randrange(n_posts)
        words, name = posts[number]
        some = rng.sample(words, min(len(words), rng.randint(1, asked)))
        if level == 6:
            other = posts[rng.randrange(n_posts)][0]
            some += rng.sample([*other, *spare], rng.randint(0, len(some) - 1) if len(some) > 1 else 0)
            rng.shuffle(some)
        segments += [(f"{_text(rng, some, filler)}\n", 0.0), (f"#{number + 1} {name}", 1.0), ("\n\n", 0.0)]
    return segments, []


def _text(rng: random.Random, words: list[str], filler: float) -> str:
    """The words, each perhaps after small words."""
    parts = [rng.choice(("about", "on", "is", "the", "my"))]
    for word in words:
        while rng.random() < filler:
            parts.append(rng.choice(FILLER))
        parts.append(word)
    return " ".join(parts)


def question_on(rng: random.Random, posts: list[Post], number: int) -> tuple[str, str] | None:
    """A question that only post `number` answers, or None where the drawn kind does not fit it."""
    post, others = posts[number], [p for i, p in enumerate(posts) if i != number]
    head, facts = label_of(post, number + 1), post.facts

    def only(*words: str) -> bool:
        return post.words.issuperset(words) and not any(other.words.issuperset(words) for other in others)

    kind = rng.choices(
        ("mentions", "pair", "quote", "read", "number", "place", "state", "ends", "author", "associate"),
        (22, 26, 13, 3, 7, 7, 8, 4, 6, 4),
    )[0]
    if kind == "mentions":
        word = rng.choice([facts["a"], facts["b"], rng.choice(sorted(post.words))])
        return (f"Question: which post mentions {word}?", head) if len(word) > 2 and only(word) else None
    if kind == "pair":
        first, second = rng.sample((facts["a"], facts["b"]), 2)
        pattern = rng.choice(
            ("mentions {x} and {y}", "mentions the {x} and the {y}", "talks about a {x} and a {y}")
        )
        question = f"Question: which post {pattern.format(x=first, y=second)}?"
        return (question, head) if only(first, second) else None
    if kind == "quote":
        words = post.text.split()
        start = rng.randrange(max(1, len(words) - 4))
        quote = " ".join(words[start : start + rng.randint(3, 6)])
        if any(quote in other.text for other in others):
            return None
        return f'Question: which post says ".. {quote} .."?', head
    if kind == "read":
        return f"Question: what does {head} say?", post.text
    if kind == "number" and "k" in facts and only(facts["k"], facts["u"]):
        return f"Question: which post says {facts['k']} {facts['u']}?", head
    if kind == "place" and "p" in facts and only(facts["p"]):
        return f"Question: which post is about {facts['p']}?", head
    if kind == "state" and "j" in facts and only(facts["j"], facts["a"]):
        return f"Question: which post has a {facts['j']} {facts['a']}?", head
    if kind == "ends" and number in (0, len(posts) - 1):
        return f"Question: which is the {'first' if number == 0 else 'last'} post?", head
    if kind == "author" and all(p.author != post.author for p in posts[number + 1 :]):
        return f"Question: which is the last post by {post.author}?", head
    if kind == "associate" and facts["a"] in lex.ASSOCIATES and only(facts["a"]):
        return f"Question: which post goes with {lex.ASSOCIATES[facts['a']]}?", head
    return None


def stretch(rng: random.Random, shortest: int, longest: int) -> list[Post]:
    """Some posts of a generated thread in their order."""
    _, posts = make_thread(rng, rng.randint(shortest, max(longest, 24) if longest >= 10 else longest))
    count = min(len(posts), rng.randint(shortest, longest))
    start = rng.randrange(len(posts) - count + 1)
    if rng.random() < 0.5:  # as retrieval shows them: some posts left out
        return [posts[i] for i in sorted(rng.sample(range(len(posts)), count))]
    return posts[start : start + count]


def thread_row(rng: random.Random, shortest: int, longest: int) -> Row:
    """A stretch of a generated thread with a dozen questions on its posts."""
    kept = stretch(rng, shortest, longest)
    asked = []
    while len(asked) < 12:
        pair = question_on(rng, kept, rng.randrange(len(kept)))
        if pair is not None:
            asked.append(pair)
    return row(ABOUT_POSTS, "\n\n".join(lines(kept)), 0.1 if rng.random() < 0.5 else 0.0, asked)


def mentions_row(rng: random.Random, shortest: int, longest: int, pointers: float = 0.0) -> Row:
    """A stretch of a thread, then twenty times a few words, most of them of one post: its label follows.

    A share `pointers` of the words is instead a verbatim piece of a post, its author's name (the last post by
    that name is meant), or "the first", "the last".
    """
    kept = stretch(rng, shortest, longest)
    context = "".join(f"{line}\n\n" for line in lines(kept))
    content = [sorted(post.words & KNOWN) for post in kept]
    segments = [(context, 0.1 if rng.random() < 0.3 else 0.0)]
    while len(segments) < 60:
        pointer = pointers > 0 and rng.random() < pointers
        found = _pointer(rng, kept) if pointer else _some_words(rng, content)
        if found is not None:
            number, text = found
            segments += [(f"{text}\n", 0.0), (label_of(kept[number], number + 1), 1.0), ("\n\n", 0.0)]
    return segments, []


def _some_words(rng: random.Random, content: list[list[str]]) -> tuple[int, str] | None:
    """Words of one post, perhaps with fewer of another; None where another post holds as many of them."""
    number = rng.randrange(len(content))
    some = rng.sample(content[number], min(len(content[number]), rng.choice((1, 2, 2, 3, 4))))
    if len(some) > 1 and rng.random() < 0.5:
        other = content[rng.randrange(len(content))]
        some = list(dict.fromkeys([*some, *rng.sample(other, min(len(other), len(some) - 1))]))
    held = [len(set(some).intersection(words)) for words in content]
    if held.count(max(held)) > 1 or held[number] < max(held):
        return None
    rng.shuffle(some)
    return number, _text(rng, some, 0.3)


def _pointer(rng: random.Random, posts: list[Post]) -> tuple[int, str] | None:
    """A piece of a post, the name of its author, or its place; None where that is another's as well."""
    number, kind = rng.randrange(len(posts)), rng.random()
    if kind < 0.4:
        words = posts[number].text.replace("?", "").split()
        start = rng.randrange(max(1, len(words) - 3))
        piece = " ".join(words[start : start + rng.randint(3, 6)])
        alone = sum(piece in post.text.replace("?", "") for post in posts) == 1
        return (number, piece) if alone and len(piece.split()) > 2 else None
    if kind < 0.8:
        name = posts[number].author
        last = max(index for index, post in enumerate(posts) if post.author == name)
        return last, _text(rng, [name], 0.5)
    return (0, "the first") if kind < 0.87 else (len(posts) - 1, "the last")


def facts_rows(seed: int) -> Iterator[Row]:
    """Tables and documents in turn, each with its questions."""
    rng = random.Random(f"facts-{seed}")
    pile: list[tuple[str, list[tuple[str, str]]]] = []
    for (table, asked), (title, text, on_text) in zip(
        tables(seed, 10**9), documents(seed, 10**9), strict=False
    ):
        cells = "\n".join(" | ".join(cells) for cells in [table.header, *table.rows])
        yield row(ABOUT_TABLE, cells, 0.0, [(f"Question: {q}", a) for q, a in asked])
        pile.append((f"{title}. {text}", on_text))
        if len(pile) == 3:
            rng.shuffle(pile)
            shown = "\n".join(f"[{number}] {text}" for number, (text, _) in enumerate(pile, 1))
            asked = [(f"Question: {q}", a) for _, on_one in pile for q, a in on_one]
            yield row(ABOUT_DOCUMENTS, shown, 0.2 if rng.random() < 0.2 else 0.0, asked)
            pile.clear()


@dataclass(frozen=True)
class Lesson:
    """One stretch of training: its rows, how many, and the shape and rate of its steps."""

    name: str
    rows: Callable[[random.Random, int], Iterator[Row]]  # (rng, how many)
    count: int
    max_seq_len: int
    tokens_per_batch: int
    learning_rate: float
    schedule: str


def _pairs(rng: random.Random, count: int) -> Iterator[Row]:
    for index in range(count):
        yield pairs_row(rng, *PAIR_LEVELS[6 * index // count])


def _posts(rng: random.Random, count: int) -> Iterator[Row]:
    for index in range(count):
        yield posts_row(rng, 7 * index // count)


def _mixed(
    rng: random.Random, count: int, posts: float, facts: float, on_thread: Callable[[int, float], Row]
) -> Iterator[Row]:
    """Rows of which a share `posts` is random words, then up to `facts` tables and documents, the rest
    `on_thread(index, draw)`.
    """
    tables_and_documents = facts_rows(rng.randrange(10**6))
    for index in range(count):
        draw = rng.random()
        if draw < posts:
            yield posts_row(rng, 6)
        elif draw < facts:
            yield next(tables_and_documents)
        else:
            yield on_thread(index, draw)


def _threads(rng: random.Random, count: int) -> Iterator[Row]:
    def on_thread(index: int, _: float) -> Row:
        return thread_row(rng, 3, 6) if index < count / 4 else thread_row(rng, 4, 11)

    return _mixed(rng, count, 0.15, 0.3, on_thread)


def _mentions(rng: random.Random, count: int, pointers: float = 0.0) -> Iterator[Row]:
    def on_thread(_: int, draw: float) -> Row:
        return thread_row(rng, 4, 11) if draw < 0.35 else mentions_row(rng, 4, 11, pointers)

    return _mixed(rng, count, 0.1, 0.18, on_thread)


def _pointers(rng: random.Random, count: int) -> Iterator[Row]:
    return _mentions(rng, count, pointers=0.5)


LESSONS = (
    Lesson("pairs", _pairs, 36_000, 64, 2048, 3e-3, "constant"),
    Lesson("posts", _posts, 40_000, 320, 3072, 1.5e-3, "constant"),
    Lesson("threads", _threads, 15_000, 768, 4096, 1.5e-3, "cosine"),
    Lesson("mentions", _mentions, 17_000, 768, 4096, 1.5e-3, "cosine"),
    Lesson("pointers", _pointers, 18_000, 768, 4096, 2e-3, "cosine"),
)


def rows_of(lesson: Lesson, seed: int) -> Iterator[Row]:
    """The rows of one lesson in the order in which they are taught."""
    return lesson.rows(random.Random(f"base-{lesson.name}-{seed}"), lesson.count)


def base_texts(seed: int) -> Iterator[str]:
    """The same text as plain strings, every eighth row of it, for fitting the tokenizer."""
    for lesson in LESSONS:
        for context, suffixes in islice(rows_of(lesson, seed), 0, None, 8):
            yield "".join(text for text, _ in context) + "".join(text for one in suffixes for text, _ in one)


def write_rows(path: Path, rows: Iterator[Row]) -> None:
    """Rows as Parquet with the columns `segments` and `suffixes` that pretraining reads."""
    segment = pa.struct([("text", pa.string()), ("weight", pa.float32())])
    schema = pa.schema([("segments", pa.list_(segment)), ("suffixes", pa.list_(pa.list_(segment)))])

    def as_dicts(segments: list[Segment]) -> list[dict]:
        return [{"text": text, "weight": weight} for text, weight in segments]

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(islice(rows, 2000)):
            dicts = [
                {"segments": as_dicts(context), "suffixes": [as_dicts(one) for one in suffixes]}
                for context, suffixes in part
            ]
            writer.write_table(pa.Table.from_pylist(dicts, schema=schema))
