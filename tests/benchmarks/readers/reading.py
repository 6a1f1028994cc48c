"""Reading corpora: rows a second of processor time, by format.

    python tests/benchmarks/readers/reading.py [--rows N] [--turns N] [--formats NAME ...]
        [--against CHECKOUT] [--json FILE]

Writes a seeded corpus of each format into a temporary folder and reads it to its end through the project's
readers, with everything that a build does while it reads (detection of the format, ids, replies).
`--against` names another checkout of this project, such as a `git worktree` of an earlier commit: it is
measured too, both take turns (A B A B), and the ratio of the medians is printed. A format that it cannot read
is measured alone, and a line says so. Times are processor time of the reading process, which a busy machine
disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import mailbox
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, Worker, at_least_one, machine, median, print_table, serve, write_result

VOCABULARY = 20_000
#: Posts of one thread, and rows of one table.
TOGETHER = 20
#: Tables and mails are much slower by row than lines of JSON.
TENTH = ("mbox", "tables_csv")


class Words:
    """Seeded sentences, with an accent in some of them and a line break in a few."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = [f"word{n}" if n % 50 else f"wörd{n}" for n in range(VOCABULARY)]

    def text(self, words: int = 20) -> str:
        """Return a text of `words` words."""
        # The product of two uniform numbers makes some words much more frequent than others.
        chance = self._random.random
        found = [self._words[int(chance() * chance() * VOCABULARY)] for _ in range(words)]
        if chance() < 0.1:
            found[words // 2] += "\n"
        return " ".join(found)

    def earlier(self, number: int) -> int | None:
        """Return the number of the post that a post answers, in its thread; None for the first one."""
        place = number % TOGETHER
        return number - self._random.randint(1, place) if place else None


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def _documents(rows: int, words: Words) -> Iterator[dict[str, Any]]:
    return ({"id": f"d{n}", "title": f"Title {n}", "text": words.text(30)} for n in range(rows))


def write_convokit(folder: Path, rows: int, words: Words) -> None:
    """Write utterances, a line each."""

    def utterance(n: int) -> dict[str, Any]:
        parent = words.earlier(n)
        return {"id": f"u{n}", "conversation_id": f"u{n - n % TOGETHER}", "speaker": f"name {n % 97}",
                "reply-to": None if parent is None else f"u{parent}", "timestamp": 1_500_000_000 + n,
                "text": words.text(), "meta": {"score": n % 7}}  # fmt: skip

    _lines(folder / "utterances.jsonl", map(utterance, range(rows)))


def write_4chan(folder: Path, rows: int, words: Words) -> None:
    """Write threads with quotelinks, a line each."""

    def post(n: int) -> dict[str, Any]:
        parent = words.earlier(n)
        link = (
            ""
            if parent is None
            else f'<a href="#p{parent + 1}" class="quotelink">&gt;&gt;{parent + 1}</a><br>'
        )
        return {"no": n + 1, "resto": n - n % TOGETHER + 1 if n % TOGETHER else 0, "time": 1_500_000_000 + n,
                "name": "Anonymous", "com": link + words.text()}  # fmt: skip

    starts = range(0, rows, TOGETHER)
    threads = ({"posts": [post(n) for n in range(s, min(s + TOGETHER, rows))]} for s in starts)
    _lines(folder / "threads.ndjson", threads)


def write_irc(folder: Path, rows: int, words: Words) -> None:
    """Write logs of a thousand lines with their annotation."""
    for start in range(0, rows, 1000):
        count = min(1000, rows - start)
        talk = [
            f"[{n // 60 % 24:02}:{n % 60:02}] <nick{n % 40}> {' '.join(words.text().split())}"
            for n in range(count)
        ]
        links = [
            f"{n if parent is None else parent} {n} -" for n in range(count) for parent in [words.earlier(n)]
        ]
        name = f"2017-{start // 28_000 + 1:02}-{start // 1000 % 28 + 1:02}"
        (folder / f"{name}.ascii.txt").write_text("\n".join(talk) + "\n", encoding="utf-8")
        (folder / f"{name}.annotation.txt").write_text("\n".join(links) + "\n", encoding="utf-8")


def write_discord(folder: Path, rows: int, words: Words) -> None:
    """Write one export of a channel."""

    def message(n: int) -> dict[str, Any]:
        parent = words.earlier(n)
        clock = f"{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}"
        about = {
            "id": str(n),
            "type": "Default",
            "timestamp": f"2024-05-{n // 86400 % 28 + 1:02}T{clock}+00:00",
            "content": words.text(),
            "author": {"id": str(n % 97), "name": f"name{n % 97}"},
            "mentions": [],
        }
        return (
            about if parent is None else {**about, "type": "Reply", "reference": {"messageId": str(parent)}}
        )

    export = {
        "guild": {"id": "1"},
        "channel": {"id": "5", "name": "general"},
        "messages": list(map(message, range(rows))),
    }
    (folder / "export.json").write_text(json.dumps(export, ensure_ascii=False, indent=1), encoding="utf-8")


def write_slack(folder: Path, rows: int, words: Words) -> None:
    """Write one day of a channel."""

    def message(n: int) -> dict[str, Any]:
        first = n - n % TOGETHER
        about = {"type": "message", "user": f"U{n % 97}", "text": words.text()}
        ts, thread_ts = (f"{1_714_521_600 + number}.000100" for number in (n, first))
        return {**about, "ts": ts, "thread_ts": thread_ts}

    (folder / "general").mkdir()
    day = json.dumps(list(map(message, range(rows))), ensure_ascii=False, indent=1)
    (folder / "general" / "2024-05-01.json").write_text(day, encoding="utf-8")


def write_mbox(folder: Path, rows: int, words: Words) -> None:
    """Write the mails of a list."""
    box = mailbox.mbox(folder / "list.mbox")
    for n in range(rows):
        mail, parent = EmailMessage(), words.earlier(n)
        mail["From"] = f"Name {n % 97} <a{n % 97}@example.org>"
        mail["Date"] = f"Wed, 1 May 2024 {n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02} +0000"
        mail["Subject"], mail["Message-ID"] = f"Subject {n - n % TOGETHER}", f"<{n}@example.org>"
        if parent is not None:
            mail["In-Reply-To"] = f"<{parent}@example.org>"
        mail.set_content(words.text())
        box.add(mail)
    box.close()


def write_documents(folder: Path, rows: int, words: Words) -> None:
    """Write documents, a line each."""
    _lines(folder / "documents.jsonl", _documents(rows, words))


def write_documents_parquet(folder: Path, rows: int, words: Words) -> None:
    """Write documents as Parquet."""
    _parquet(folder / "documents.parquet", _documents(rows, words))


def write_questions(folder: Path, rows: int, words: Words) -> None:
    """Write questions about documents, a line each."""
    rows_ = (
        {"id": f"q{n}", "document_id": f"d{n}", "question": words.text(8), "answers": [f"a{n}", "b"]}
        for n in range(rows)
    )
    _lines(folder / "questions.jsonl", rows_)


def write_alpaca(folder: Path, rows: int, words: Words) -> None:
    """Write instructions, a line each."""
    _lines(
        folder / "alpaca.jsonl",
        ({"instruction": words.text(10), "input": "", "output": words.text()} for _ in range(rows)),
    )


def write_tables_csv(folder: Path, rows: int, words: Words) -> None:
    """Write questions in the layout of WikiTableQuestions, with a table each."""
    (folder / "data").mkdir()
    (folder / "csv").mkdir()
    lines = ["id\tutterance\tcontext\ttargetValue"]
    for n in range(rows):
        lines.append(f"nt-{n}\t{' '.join(words.text(8).split())}\tcsv/{n}.csv\tcell {n}")
        cells = [f'"cell {n}","{" ".join(words.text(3).split())}","{k}"' for k in range(TOGETHER)]
        (folder / "csv" / f"{n}.csv").write_text(
            "\n".join(['"Name","Text","Number"', *cells]) + "\n", encoding="utf-8"
        )
    (folder / "data" / "training.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _named(name: str, *modules: str) -> Any:
    """Return what is called `name` in the first of the modules that the measured checkout has.

    Earlier commits, such as fec5d18, have other modules.
    """
    checkout = Path(next(iter(importlib.import_module("retrieval").__path__))).parent
    for module in modules:
        # Not by trying: an installed project would lend the other checkout the modules that it lacks.
        if (checkout / f"{module.replace('.', '/')}.py").is_file():
            return getattr(importlib.import_module(module), name)
    raise SystemExit(f"error: the checkout has no {name} in {' or '.join(modules)}")


def _tally() -> Any:
    return _named("Tally", "retrieval.corpus.types", "retrieval.corpus")()


def _source_file(path: Path) -> Any:
    return _named("SourceFile", "retrieval.corpus.source_files", "retrieval.sources")(path, path.name)


def read_threads_of(folder: Path) -> int:
    """Read all threads of a folder; the number of their posts."""
    read_threads = _named("read_threads", "retrieval.readers.threads.registry", "retrieval.readers.threads")
    task = _named("ThreadsTask", "retrieval.settings.tasks", "retrieval.task_config")(source=str(folder))
    return sum(len(thread.posts) for thread in read_threads(task, _tally()))


def _documents_reader(name: str) -> Any:
    return _named(name, "retrieval.readers.documents.documents", "retrieval.readers.documents")


def read_documents_of(folder: Path) -> int:
    """Read all documents of the one file in a folder."""
    (path,) = folder.iterdir()
    return sum(1 for _ in _documents_reader("stream_documents")([_source_file(path)], _tally()))


class _Any:
    """Every id."""

    def __contains__(self, key: object) -> bool:
        return True


def read_questions_of(folder: Path) -> int:
    """Read all questions of the one file in a folder."""
    (path,) = folder.iterdir()
    return sum(1 for _ in _documents_reader("stream_questions")([_source_file(path)], _Any(), _tally()))


def read_instructions_of(folder: Path) -> int:
    """Read all instructions of the one file in a folder."""
    (path,) = folder.iterdir()
    modules = ("retrieval.readers.documents.instructions", "retrieval.readers.alpaca")
    return sum(1 for _ in _named("read_triples", *modules)([_source_file(path)], _tally()))


def read_tables_of(folder: Path) -> int:
    """Read all questions and tables of a folder; the number of questions."""
    modules = ("retrieval.readers.tables.wikitables", "retrieval.readers.wikitables")
    read_tables = _named("read_tables", *modules)
    return len(read_tables(folder, folder / "data" / "training.tsv", _tally(), "training.tsv")[1])


#: Of each format, what writes a corpus of so many rows and what reads it.
FORMATS: dict[str, tuple[Callable[[Path, int, Words], None], Callable[[Path], int]]] = {
    "convokit": (write_convokit, read_threads_of),
    "4chan": (write_4chan, read_threads_of),
    "irc": (write_irc, read_threads_of),
    "discord": (write_discord, read_threads_of),
    "slack": (write_slack, read_threads_of),
    "mbox": (write_mbox, read_threads_of),
    "documents": (write_documents, read_documents_of),
    "documents_parquet": (write_documents_parquet, read_documents_of),
    "questions": (write_questions, read_questions_of),
    "alpaca": (write_alpaca, read_instructions_of),
    "tables_csv": (write_tables_csv, read_tables_of),
}


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=at_least_one, default=60_000)
    parser.add_argument("--turns", type=at_least_one, default=5)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    checkouts = {"this": ROOT} | ({"other": args.against.resolve()} if args.against else {})
    with tempfile.TemporaryDirectory(prefix="reading-") as name:
        for format in args.formats:
            folder = Path(name) / format
            folder.mkdir()
            FORMATS[format][0](folder, _rows(format, args.rows), Words(args.seed))
        results = measure(Path(name), args.formats, checkouts, args.turns)
    rows = [_row(result) for result in results]
    names = dict.fromkeys(name for row in rows for name in row)
    print_table([{name: row.get(name, "") for name in names} for row in rows])
    ratios = {r["format"]: r["other"]["median"] / r["this"]["median"] for r in results if "other" in r}
    settings = {"rows": args.rows, "turns": args.turns, "seed": args.seed}
    write_result(args.json, about, settings, results, ratios)


def _rows(format: str, rows: int) -> int:
    return max(rows // 10, 1) if format in TENTH else rows


def measure(folder: Path, formats: list[str], checkouts: dict[str, Path], turns: int) -> list[dict[str, Any]]:
    """Read every corpus `turns` times with each checkout, which take turns.

    Raises:
        SystemExit: the checkouts read different numbers of rows.
    """
    script = Path(__file__).resolve()
    workers = [
        Worker(
            name,
            script,
            {"folder": str(folder), "must_read": name == "this"},
            {"PYTHONPATH": str(path), "JORA_READING": "worker"},
        )
        for name, path in checkouts.items()
    ]
    try:
        for worker in workers:
            worker.answer()
        results = []
        for format in formats:
            found: dict[str, list[dict[str, Any]]] = {}
            # The first turn imports the reader and fills the system's page cache.
            for turn in range(turns + 1):
                for worker in workers if not turn else [w for w in workers if w.name in found]:
                    answer = worker.ask("read", format=format)
                    if turn:
                        found[worker.name].append(answer)
                    elif "refused" not in answer:
                        found[worker.name] = []
                    else:
                        print(f"{format}: the other checkout cannot read it: {answer['refused']}")
            counts = {answer["rows"] for answers in found.values() for answer in answers}
            if len(counts) > 1:
                raise SystemExit(f"{format}: the checkouts read different numbers of rows, {sorted(counts)}")
            sides = {
                name: {"seconds": [a["seconds"] for a in answers], "median": median(answers)}
                for name, answers in found.items()
            }
            results.append({"format": format, "rows": counts.pop(), **sides})
        return results
    finally:
        for worker in workers:
            worker.close()


def _row(result: dict[str, Any]) -> dict[str, str]:
    rows, this = result["rows"], result["this"]["median"]
    row = {
        "format": result["format"],
        "rows": str(rows),
        "seconds": f"{this:.2f}",
        "rows/s": f"{rows / this:.0f}",
    }
    if "other" in result:
        other = result["other"]["median"]
        row |= {"other: seconds": f"{other:.2f}", "this/other": f"{this / other:.2f}"}
    return row


def worker(settings: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """The measured process: reads a corpus when asked."""
    folder = Path(settings["folder"])

    def read(format: str) -> dict[str, Any]:
        start = time.process_time()
        try:
            rows = FORMATS[format][1](folder / format)
        except Exception as error:
            if settings["must_read"]:
                raise
            return {"refused": f"{type(error).__name__}: {error}"}
        return {"rows": rows, "seconds": time.process_time() - start}

    return {"read": read}


if __name__ == "__main__":
    import os

    if os.environ.get("JORA_READING") == "worker":
        serve(worker)
    else:
        main()
