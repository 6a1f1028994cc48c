"""Short documents about invented places of everyday life, and questions on the facts they state, seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import lexicon as lex

KINDS = ["shop", "club", "workshop", "school", "market", "festival", "course", "museum"]

# One fact: sentences that state it, questions that ask for it; {t} is the title, {v} the value.
FACTS: dict[str, tuple[list[str], list[str]]] = {
    "founder": (
        ["it was started by {v}", "{v} opened the doors first", "the founder is {v}"],
        ["who started the {t}?", "who is the founder of the {t}?"],
    ),
    "year": (
        ["it dates from {v}", "the first season was {v}", "it has been running since {v}"],
        ["since when does the {t} exist?", "in which year did the {t} begin?"],
    ),
    "seat": (
        ["you find it in {v}", "its home is {v}", "visitors travel to {v}"],
        ["where is the {t}?", "in which town do you find the {t}?"],
    ),
    "speciality": (
        ["everyone comes for the {v}", "it is known for its {v}", "the pride of the house is a {v}"],
        ["what is the {t} known for?", "what do people come to the {t} for?"],
    ),
    "fee": (
        ["a visit costs {v}", "the fee is {v}", "you pay {v} at the door"],
        ["what does a visit to the {t} cost?", "how much do you pay at the {t}?"],
    ),
    "day": (
        ["it opens on {v}", "{v} is the busy day", "they meet every {v}"],
        ["on which day does the {t} open?", "when do they meet at the {t}?"],
    ),
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def make_document(rng: random.Random) -> tuple[str, str, dict[str, str]]:
    """Title, text and the facts that the text states."""
    topic = rng.choice(sorted(lex.TOPICS))
    title = f"{rng.choice(lex.ADJECTIVES)} {rng.choice(lex.TOPICS[topic])} {rng.choice(KINDS)}"
    values = {
        "founder": rng.choice(lex.NAMES),
        "year": str(rng.randint(1950, 2020)),
        "seat": rng.choice(lex.PLACES),
        "speciality": f"{rng.choice(lex.ADJECTIVES)} {rng.choice(lex.TOPICS[topic])}",
        "fee": f"{rng.randint(2, 99)} {rng.choice(('dollars', 'euros'))}",
        "day": rng.choice(DAYS),
    }
    stated = rng.sample(sorted(FACTS), rng.randint(3, 5))
    text = ". ".join(rng.choice(FACTS[name][0]).format(v=values[name]) for name in stated) + "."
    return title, text, {name: values[name] for name in stated}


def documents(seed: int, count: int) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """`count` documents with different titles, each with a question on two of its facts."""
    rng = random.Random(f"documents-{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        title, text, facts = make_document(rng)
        if title in seen:
            continue
        seen.add(title)
        asked = rng.sample(sorted(facts), 2)
        yield title, text, [(rng.choice(FACTS[name][1]).format(t=title), facts[name]) for name in asked]


def write_documents(folder: Path, seed: int, count: int) -> None:
    """`documents.jsonl` and `questions.jsonl` below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "documents.jsonl").open("w", encoding="utf-8") as texts,
        (folder / "questions.jsonl").open("w", encoding="utf-8") as questions,
    ):
        for index, (title, text, asked) in enumerate(documents(seed, count)):
            texts.write(json.dumps({"id": f"d{index}", "title": title, "text": text}) + "\n")
            for number, (question, answer) in enumerate(asked):
                row = {
                    "id": f"d{index}-{number}",
                    "document_id": f"d{index}",
                    "question": question,
                    "answers": [answer],
                }
                questions.write(json.dumps(row) + "\n")
