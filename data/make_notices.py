"""Notices of invented lost-property offices with questions, seeded: the corpus of `flows/configs/qa.yaml`.

    python data/make_notices.py [--output data/sample/notices] [--seed 0]

A document is a notice: what was found, in which town, and who keeps it. A question names one of the things.
The answer says who keeps it, in the words of the notice.

The tiny base model has 0.8 million parameters. It has learned to copy the name that follows a text
(`data/tiny-llama/TRAINING.md`), but it has seen neither a notice nor such a question. So it learns this task
within minutes, unlike the open questions of `data/sample/documents.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import lexicon as lex

COUNT = 600
# {x} and {y} are things, {p} is a town.
FOUND = [
    "found in {p}: one {x} and one {y}.",
    "{p} sent us one {x} and one {y}.",
    "left behind in {p}, one {x} with one {y}.",
]
ASKED = ["where is the {x}?", "who has the {x}?", "where can I collect the {x}?"]


def notices(seed: int, count: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the texts of `count` notices, each with two questions and answers. No thing is found twice."""
    rng = random.Random(f"notices-{seed}")
    words = sorted({word for topic in lex.TOPICS.values() for word in topic})
    things = [f"{adjective} {word}" for adjective in lex.ADJECTIVES for word in words]
    rng.shuffle(things)
    for x, y in zip(things[:count], things[count : 2 * count], strict=True):
        keeper = f"kept by {rng.choice(lex.NAMES)}"
        found = rng.choice(FOUND).format(p=rng.choice(lex.PLACES), x=x, y=y)
        yield f"{found} {keeper}.", [(rng.choice(ASKED).format(x=thing), keeper) for thing in (x, y)]


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
