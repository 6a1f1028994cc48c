"""Recall of BM25 by language, on parallel questions: the same passages and questions in several languages.

    python tests/benchmarks/search/language_recall.py --json out.json
    python tests/benchmarks/search/language_recall.py --squad en=xquad.en.json zh=xquad.zh.json

Without files, it reads `parallel_questions.json` beside this script: pairs of passages that differ in few
words. `plain words` splits at everything that is no letter or digit, as this project did before.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import machine, print_table, write_result

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.documents.documents import stream_documents, stream_questions
from retrieval.search.bm25.builder import build_index
from retrieval.text.normalize import STEMMERS, Tokenizer

PARALLEL = Path(__file__).resolve().parent / "parallel_questions.json"
NAMES = {"en": "english", "zh": "chinese", "ar": "arabic", "hi": "hindi", "th": "thai", "tr": "turkish"}

Questions = list[tuple[str, int]]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--squad", nargs="+", default=[], metavar="LANG=FILE", help="SQuAD files by language")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def plain_words(text: str) -> list[str]:
    """The words of before: runs of letters and digits, without combining marks."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def parallel() -> dict[str, tuple[list[str], Questions]]:
    """The passages and (question, number of its passage) of each language."""
    items = json.loads(PARALLEL.read_text(encoding="utf-8"))
    return {
        name: ([item[name][0] for item in items], [(item[name][1], n) for n, item in enumerate(items)])
        for name in NAMES
    }


def squad(path: Path) -> tuple[list[str], Questions]:
    """The paragraphs and questions of a SQuAD file."""
    file, tally = [SourceFile(path, path.name)], Tally()
    documents = list(stream_documents(file, tally, layout="squad"))
    place = {document.id: n for n, document in enumerate(documents)}
    questions = stream_questions(file, place, tally, "squad")
    return [d.text for d in documents], [(q.text, place[q.context_id]) for q in questions]


def recall(passages: list[str], questions: Questions, split: Callable[[str], list[str]]) -> float:
    """The share of questions whose passage BM25 ranks first."""
    index = build_index([split(passage) for passage in passages])
    first = [int(index.search(split(question), 1)[0][0]) for question, _ in questions]
    return sum(a == b for a, (_, b) in zip(first, questions, strict=True)) / len(questions)


def measure(corpora: dict[str, tuple[list[str], Questions]]) -> list[dict[str, Any]]:
    """One row for each language."""
    out: list[dict[str, Any]] = []
    for name, (passages, questions) in corpora.items():
        language = NAMES.get(name, name)
        stemmed = language in STEMMERS
        out.append(
            {
                "language": language,
                "questions": len(questions),
                "plain words": recall(passages, questions, plain_words),
                "words": recall(passages, questions, Tokenizer()),
                "stemmed": recall(passages, questions, Tokenizer(language)) if stemmed else None,
            }
        )
    return out


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    given = dict(pair.split("=", 1) for pair in args.squad)
    corpora = {name: squad(Path(path)) for name, path in given.items()} if given else parallel()
    rows = measure(corpora)
    columns = ("language", "questions", "plain words", "words", "stemmed")
    print_table([{column: _shown(row[column]) for column in columns} for row in rows])
    english = next((row["words"] for row in rows if row["language"] == "english"), None)
    ratios = {str(row["language"]): row["words"] / english for row in rows} if english else {}
    write_result(args.json, machine(), {"squad": args.squad}, rows, ratios)


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
