"""Tables and questions in WikiTableQuestions' layout, seeded: look-up, neighbour row, count, extreme,
difference.

The layout is that of the WikiTableQuestions release (Pasupat and Liang 2015): `data/training.tsv` with `id`,
`utterance`, `context`, `targetValue`, and one CSV a table below `csv/200-csv/`.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lexicon as lex

KEYS = {
    "member": lex.NAMES,
    "town": lex.PLACES,
    "item": sorted({word for words in lex.TOPICS.values() for word in words}),
}
NUMBERS = {
    "points": (2, 99), "price": (5, 95), "weight": (2, 80), "visitors": (10, 99), "votes": (3, 90),
    "age": (18, 79), "year": (1950, 2020), "length": (2, 99),
}  # fmt: skip
LABELS = {
    "colour": ["red", "blue", "green", "yellow", "purple", "black", "white", "orange"],
    "result": ["won", "lost", "draw"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "topic": sorted(lex.TOPICS),
    "state": lex.ADJECTIVES,
}


@dataclass(frozen=True)
class Table:
    """A header and its rows, all cells text; column 0 is unique."""

    header: list[str]
    rows: list[list[str]]

    def column(self, index: int) -> list[str]:
        return [row[index] for row in self.rows]


def make_table(rng: random.Random, n_rows: int) -> Table:
    """A key column, one or two columns of labels and one or two of numbers, in random order after the key."""
    key = rng.choice(sorted(KEYS))
    columns = rng.sample(sorted(LABELS), rng.randint(1, 2)) + rng.sample(sorted(NUMBERS), rng.randint(1, 2))
    rng.shuffle(columns)
    cells = [rng.sample(list(KEYS[key]), n_rows)]
    for name in columns:
        if name in LABELS:
            values = rng.sample(LABELS[name], min(len(LABELS[name]), rng.randint(2, 5)))
            cells.append([rng.choice(values) for _ in range(n_rows)])
        else:
            low, high = NUMBERS[name]
            cells.append([str(number) for number in rng.sample(range(low, high + 1), n_rows)])
    return Table([key, *columns], [list(row) for row in zip(*cells, strict=True)])


def make_question(rng: random.Random, table: Table) -> tuple[str, str] | None:
    """One question and its answer, or None where the drawn kind does not fit the table."""
    key, keys = table.header[0], table.column(0)
    column = rng.randrange(1, len(table.header))
    name, values = table.header[column], table.column(column)
    kind = rng.choice(
        ("lookup", "lookup", "lookup", "next", "previous", "which", "count", "extreme", "difference")
    )
    row = rng.randrange(len(keys))
    if kind == "lookup":
        pattern = rng.choice(("what is the {c} of {k}?", "which {c} does {k} have?", "tell the {c} for {k}"))
        return pattern.format(c=name, k=keys[row]), values[row]
    if kind == "next" and row + 1 < len(keys):
        return rng.choice(("which {c} comes after {k}?", "what {c} is listed below {k}?")).format(
            c=key, k=keys[row]
        ), keys[row + 1]
    if kind == "previous" and row > 0:
        return rng.choice(("which {c} comes before {k}?", "what {c} is listed above {k}?")).format(
            c=key, k=keys[row]
        ), keys[row - 1]
    if kind == "which" and values.count(values[row]) == 1:
        return f"which {key} has {name} {values[row]}?", keys[row]
    if kind == "count" and name in LABELS:
        return f"how many rows have {name} {values[row]}?", str(values.count(values[row]))
    if name in NUMBERS and kind == "extreme":
        word = rng.choice(("highest", "lowest"))
        pick = (max if word == "highest" else min)(values, key=int)
        return f"which {key} has the {word} {name}?", keys[values.index(pick)]
    if name in NUMBERS and kind == "difference":
        first, second = sorted(rng.sample(range(len(keys)), 2), key=lambda index: -int(values[index]))
        question = f"how much more {name} does {keys[first]} have than {keys[second]}?"
        return question, str(int(values[first]) - int(values[second]))
    return None


def tables(seed: int, count: int, n_questions: int = 8) -> Iterator[tuple[Table, list[tuple[str, str]]]]:
    """`count` tables of 4 to 9 rows with `n_questions` different questions each."""
    rng = random.Random(f"tables-{seed}")
    for _ in range(count):
        table = make_table(rng, rng.randint(4, 9))
        asked: dict[str, str] = {}
        while len(asked) < n_questions:
            pair = make_question(rng, table)
            if pair is not None:
                asked.setdefault(*pair)
        yield table, list(asked.items())


def write_tables(folder: Path, seed: int, count: int) -> None:
    """The tables and their questions below `folder`, laid out as WikiTableQuestions is."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "csv" / "200-csv").mkdir(parents=True, exist_ok=True)
    lines = ["id\tutterance\tcontext\ttargetValue"]
    for index, (table, questions) in enumerate(tables(seed, count)):
        path = f"csv/200-csv/{index}.csv"
        with (folder / path).open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([table.header, *table.rows])
        lines += [f"nt-{len(lines) - 1 + i}\t{q}\t{path}\t{a}" for i, (q, a) in enumerate(questions)]
    (folder / "data" / "training.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
