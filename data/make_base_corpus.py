"""What the tiny base model is trained on: easy, dense signals first, then language about threads, tables and
documents.

A row is a context and many short questions on it. The questions share one pass over the context (they are the
row's `suffixes`), so a step sees ten answers for the price of one context. None of them is the task itself:
the base learns to copy, to find the post that mentions something and to read a post by its number; which post
a *comment answers* is what fine-tuning has to teach. All seeds differ from the sample's.

Three kinds of rows:
  words    posts of random words, so that nothing but looking them up helps, and plain repetition
  threads  generated threads with questions on single posts
  facts    generated tables and documents with their questions
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
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


def label_of(post: Post, number: int) -> str:
    """What an answer calls a post."""
    return f"{post.author} #{number}"


def lines(posts: list[Post]) -> list[str]:
    """Posts as the pipeline's records show them: the text, and its label on a line of its own."""
    return [f"{post.text}\n{label_of(post, number)}" for number, post in enumerate(posts, 1)]


def row(instruction: str, context: str, weight: float, asked: list[tuple[str, str]]) -> Row:
    """A context with its questions; only the answers (and the context, by `weight`) are learned."""
    suffixes = [[(f"\n\n{question}{TAIL}", 0.0), (answer, 1.0)] for question, answer in asked]
    return [(HEAD.format(instruction=instruction), 0.0), (context, weight)], suffixes


def repetition(rng: random.Random) -> Row:
    """Random words, over and over: the quickest way to learn to copy."""
    once = " ".join(rng.sample(WORDS + lex.NAMES, rng.randint(5, 25)))
    return [(once, 0.0), ((" " + once) * rng.randint(2, 4), 1.0)], []


def words_row(rng: random.Random, longest: int) -> Row:
    """Posts of up to `longest` random words, no word twice, and which post holds one, two or three of them.

    Beside whole questions the row asks in the shortest form, a word and then its post's label. With posts
    of one word that is plain copying; as posts grow, the label has to stand for all the words above it.
    """
    n_posts = rng.randint(2, 10)
    counts = [rng.randint(1, longest) for _ in range(n_posts)]
    pool = iter(rng.sample(WORDS, sum(counts)))
    authors = rng.sample(lex.NAMES, max(2, min(n_posts, 6)))
    posts = [Post(rng.choice(authors), " ".join(next(pool) for _ in range(count))) for count in counts]
    asked, index = [], []
    for _ in range(14):
        number = rng.randrange(n_posts)
        words, label = posts[number].text.split(), label_of(posts[number], number + 1)
        some = rng.sample(words, min(len(words), rng.choice((1, 1, 2, 3))))
        if rng.random() < 0.5:
            index.append([(f"\n\n{' '.join(some)}\n", 0.0), (label, 1.0)])
        else:
            asked.append((f"Question: which post mentions {' and '.join(some)}?", label))
    context, suffixes = row(ABOUT_POSTS, "\n\n".join(lines(posts)), 0.0, asked)
    return context, suffixes + index


def question_on(
    rng: random.Random, posts: list[Post], number: int, shown: list[str]
) -> tuple[str, str] | None:
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


def thread_row(rng: random.Random, shortest: int, longest: int) -> Row:
    """A stretch of a generated thread with a dozen questions on its posts."""
    _, posts = make_thread(rng, rng.randint(shortest, max(longest, 24) if longest >= 10 else longest))
    count = min(len(posts), rng.randint(shortest, longest))
    start = rng.randrange(len(posts) - count + 1)
    kept = posts[start : start + count]
    if rng.random() < 0.5:  # as retrieval shows them: some posts left out, the order kept
        kept = [posts[i] for i in sorted(rng.sample(range(len(posts)), count))]
    shown = lines(kept)
    asked = []
    while len(asked) < 12:
        pair = question_on(rng, kept, rng.randrange(count), shown)
        if pair is not None:
            asked.append(pair)
    return row(ABOUT_POSTS, "\n\n".join(shown), 0.2 if rng.random() < 0.2 else 0.0, asked)


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


def corpus(seed: int, count: int) -> Iterator[Row]:
    """`count` rows in the order of the lessons: copying, looking up random words, then language."""
    rng = random.Random(f"base-{seed}")
    facts = facts_rows(seed)
    for index in range(count):
        done = index / count
        repeated, looked_up = (0.5, 1.0) if done < 0.45 else (0.2, 0.8) if done < 0.6 else (0.08, 0.22)
        draw = rng.random()
        if draw < repeated:
            yield repetition(rng)
        elif draw < looked_up:
            yield words_row(rng, 1 + int(12 * done))
        elif draw > 0.86:
            yield next(facts)
        else:
            yield thread_row(rng, 3, 6) if done < 0.75 else thread_row(rng, 4, 11)


def base_texts(seed: int, count: int) -> Iterator[str]:
    """The same text as plain strings, for fitting the tokenizer."""
    for context, suffixes in corpus(seed, count):
        yield "".join(text for text, _ in context) + "".join(text for one in suffixes for text, _ in one)


def write_corpus(path: Path, seed: int, count: int) -> None:
    """The rows as Parquet with the columns `segments` and `suffixes` that pretraining reads."""
    segment = pa.struct([("text", pa.string()), ("weight", pa.float32())])
    schema = pa.schema([("segments", pa.list_(segment)), ("suffixes", pa.list_(pa.list_(segment)))])

    def as_dicts(segments: list[Segment]) -> list[dict]:
        return [{"text": text, "weight": weight} for text, weight in segments]

    rows = [
        {"segments": as_dicts(context), "suffixes": [as_dicts(one) for one in suffixes]}
        for context, suffixes in corpus(seed, count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=75_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_corpus(args.output, args.seed, args.rows)
    print(f"wrote {args.rows} rows to {args.output}")
