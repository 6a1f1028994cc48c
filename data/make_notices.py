"""Notices of an invented lost-property office, and questions about them, seeded: the corpus of `flows/configs/qa.yaml`.

    python data/make_notices.py [--output data/sample/notices] [--seed 0]

Each notice is a document: what was found, where, and at its end the place where it waits, such as `#7 Iris` (shelf 7,
clerk Iris). A question names one thing of a notice; the answer is that place. The tiny base model has 0.8 million
parameters and has learned to find a text by its words and to copy the label that follows the text
(`data/tiny-llama/TRAINING.md`), but it has never seen a notice. So this is a task that it can learn within minutes,
unlike the open questions of `documents.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import lexicon as lex

SHELVES = 12
FOUND = [
    "found in {p}: a {x} and a {y}.",
    "{p} sent us a {x} and a {y}.",
    "left behind in {p}, a {x} with a {y}.",
]
ASKED = ["where is the {x}?", "where does the {x} wait?", "who keeps the {x}?"]


def notices(seed: int, count: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """`count` notices, each with a question on both of its things. No thing is found twice."""
    rng = random.Random(f"notices-{seed}")
    words = sorted({word for topic in lex.TOPICS.values() for word in topic})
    things = [f"{adjective} {word}" for adjective in lex.ADJECTIVES for word in words]
    rng.shuffle(things)
    for first, second in zip(things[:count], things[count : 2 * count], strict=True):
        place = f"#{rng.randint(1, SHELVES)} {rng.choice(lex.NAMES)}"
        found = rng.choice(FOUND).format(p=rng.choice(lex.PLACES), x=first, y=second)
        yield f"{found} {place}", [(rng.choice(ASKED).format(x=thing), place) for thing in (first, second)]


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
    write_notices(args.output, args.seed, 600)
    print(f"wrote notices and questions to {args.output}")
