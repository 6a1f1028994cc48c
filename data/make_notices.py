"""Notices of an invented lost-property office with questions, seeded: the corpus of `flows/configs/qa.yaml`.

    python data/make_notices.py [--output data/sample/notices] [--seed 0]

Each notice is a document: what was found, in which town, and at its end the place where it waits, such as
`#7 Iris` (shelf 7, clerk Iris). A question describes some of what was found; the answer is that place.

The tiny base model has 0.8 million parameters. It has learned to find a text by its words and to copy the
label behind that text (`data/tiny-llama/TRAINING.md`), but it has seen neither a notice nor such a question.
So this is a task that it learns within minutes, unlike the open questions of `data/sample/documents.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import lexicon as lex

COUNT = 800
SHELVES = 12
# {x} and {y} are things, {p} is a town.
FOUND = [
    "found in {p}: a {x} and a {y}.",
    "{p} sent us a {x} and a {y}.",
    "left behind in {p}, a {x} with a {y}.",
]
ASKED = [
    "where are the {x} and the {y}?",
    "where is the {x} that was left with the {y}?",
    "where is the {x} from {p}?",
    "who keeps the {y} of {p}?",
]


def notices(seed: int, count: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield `count` notices, each with two questions and their answers. No thing is found twice."""
    rng = random.Random(f"notices-{seed}")
    words = sorted({word for topic in lex.TOPICS.values() for word in topic})
    things = [f"{adjective} {word}" for adjective in lex.ADJECTIVES for word in words]
    rng.shuffle(things)
    for x, y in zip(things[:count], things[count : 2 * count], strict=True):
        town = rng.choice(lex.PLACES)
        place = f"#{rng.randint(1, SHELVES)} {rng.choice(lex.NAMES)}"
        found = rng.choice(FOUND).format(p=town, x=x, y=y)
        yield f"{found} {place}", [(text.format(p=town, x=x, y=y), place) for text in rng.sample(ASKED, 2)]


def write_notices(folder: Path, seed: int, count: int) -> None:
    """Write `notices.jsonl` and `questions.jsonl` below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "notices.jsonl").open("w", encoding="utf-8") as texts,
        (folder / "questions.jsonl").open("w", encoding="utf-8") as questions,
    ):
        for index, (text, asked) in enumerate(notices(seed, count)):
            texts.write(json.dumps({"id": f"n{index}", "text": text}) + "\n")
            for number, (question, answer) in enumerate(asked):
                row = {
                    "id": f"n{index}-{number}",
                    "document_id": f"n{index}",
                    "question": question,
                    "answers": [answer],
                }
                questions.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "sample" / "notices")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_notices(args.output, args.seed, COUNT)
    print(f"wrote notices and questions to {args.output}")
