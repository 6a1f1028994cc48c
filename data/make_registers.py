"""Registers of invented lost-property offices with questions, seeded: the corpus of `flows/configs/qa.yaml`.

    python data/make_registers.py [--output data/sample/registers] [--seed 0]

A document is the register of one town's office: the things that were found, each with the name of its keeper.
A question asks for the entry of one thing. The answer is the thing with its keeper, as in the register.

The tiny base model has 0.8 million parameters. It has learned to find a word again and to continue with the
name behind it (`data/tiny-llama/TRAINING.md`), but it has seen neither a register nor such a question. So it
learns this task within minutes, unlike the open questions of `data/sample/documents.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import lexicon as lex

COUNT = 400
ENTRIES = 4
ASKED = "what is the entry of the {thing}?"


def registers(seed: int, count: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the texts of `count` registers, each with questions and answers. No thing is found twice."""
    rng = random.Random(f"registers-{seed}")
    words = sorted({word for topic in lex.TOPICS.values() for word in topic})
    things = [f"{adjective} {word}" for adjective in lex.ADJECTIVES for word in words]
    rng.shuffle(things)
    for first in range(0, count * ENTRIES, ENTRIES):
        found = [(thing, rng.choice(lex.NAMES)) for thing in things[first : first + ENTRIES]]
        listed = ", ".join(f"{thing} {keeper}" for thing, keeper in found)
        asked = [(ASKED.format(thing=thing), f"entry: {thing} {keeper}") for thing, keeper in found]
        yield f"register of {rng.choice(lex.PLACES)}: {listed}.", asked


def write_registers(folder: Path, seed: int, count: int) -> None:
    """Write `registers.jsonl` and `questions.jsonl` below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "registers.jsonl").open("w", encoding="utf-8") as texts,
        (folder / "questions.jsonl").open("w", encoding="utf-8") as questions,
    ):
        for index, (text, asked) in enumerate(registers(seed, count)):
            texts.write(json.dumps({"id": f"r{index}", "text": text}) + "\n")
            for number, (question, answer) in enumerate(asked):
                row = {
                    "id": f"r{index}-{number}",
                    "document_id": f"r{index}",
                    "question": question,
                    "answers": [answer],
                }
                questions.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "sample" / "registers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_registers(args.output, args.seed, COUNT)
    print(f"wrote registers and questions to {args.output}")
