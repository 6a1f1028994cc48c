"""Small corpora in every format, the real ones where they are mounted, and a real embedder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = ["Marta", "Lena", "Oskar", "Priya", "Tomas", "Wren"]
TOPICS = ["kettle", "bicycle", "orchard", "violin", "lantern", "compass", "sourdough", "harbour", "telescope"]


def link(number: int) -> str:
    """A quotelink as the board writes it."""
    return f'<a href="#p{number}" class="quotelink">&gt;&gt;{number}</a><br>'


def post(number: int, com: str | None, name: str = "Marta", resto: int = 0, **extra: Any) -> dict[str, Any]:
    """One API post."""
    out: dict[str, Any] = {"no": number, "resto": resto, "time": number, "name": name, **extra}
    return out if com is None else {**out, "com": com}


def thread(start: int, n: int = 8) -> dict[str, Any]:
    """A thread of `n` posts, most of which reply to some earlier one and share its topic."""
    posts = [post(start, f"Thread {start} about the {TOPICS[start % 9]} and {TOPICS[(start + 4) % 9]}.")]
    for i in range(1, n):
        number, parent = start + i, start + (i * 5 + start) % i
        topic = TOPICS[(parent * 3 + start) % 9]
        text = f"My {topic} number {number} is older than yours, said {NAMES[(i + start) % 6]} {number * 7}."
        posts.append(post(number, (link(parent) if i % 4 else "") + text, NAMES[i % 6], start))
    return {"posts": posts}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a text file below the test's folder."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def threads_file(write: Callable[[str, str], Path]) -> Path:
    """Thirty threads, one a line."""
    return write("threads.ndjson", "".join(json.dumps(thread(1000 + 50 * i)) + "\n" for i in range(30)))


@pytest.fixture
def tables_folder(write: Callable[[str, str], Path]) -> Path:
    """Twelve tables with two questions each, in WikiTableQuestions' layout."""
    lines = ["id\tutterance\tcontext\ttargetValue"]
    for i in range(12):
        name = f"csv/200-csv/{i}.csv"
        rows = [f'"{TOPICS[(i + j) % 9]}","{1900 + 10 * i + j}"' for j in range(4)]
        path = write(f"tables/{name}", "\n".join(['"Thing","Year"', *rows]) + "\n")
        lines.append(f"nt-{2 * i}\twhich year has the {TOPICS[i % 9]}?\t{name}\t{1900 + 10 * i}")
        lines.append(f"nt-{2 * i + 1}\twhich things are last?\t{name}\t{TOPICS[(i + 3) % 9]}|a\\pb")
    write("tables/data/training.tsv", "\n".join(lines) + "\n")
    return path.parents[2]


@pytest.fixture
def qa_files(write: Callable[[str, str], Path]) -> tuple[Path, Path]:
    """Forty documents, each with one question."""
    documents = [
        {
            "id": f"d{i}",
            "title": f"The {TOPICS[i % 9]} of {NAMES[i % 6]}",
            "text": f"It cost {i * 13} coins in {i}.",
        }
        for i in range(40)
    ]
    questions = [
        {
            "id": f"q{i}",
            "document_id": f"d{i}",
            "question": f"What did it cost in {i}?",
            "answers": [f"{i * 13} coins"],
        }
        for i in range(40)
    ]
    return (
        write("documents.jsonl", "".join(json.dumps(d) + "\n" for d in documents)),
        write("questions.jsonl", "".join(json.dumps(q) + "\n" for q in questions)),
    )


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sentence-transformers folder with static token vectors for the fixtures' words."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*TOPICS, *[n.lower() for n in NAMES], "it", "cost", "coins", *map(str, range(60))]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    weights = np.random.default_rng(0).normal(size=(len(words) + 1, 16)).astype(np.float32)
    weights[0] = 0
    folder = tmp_path_factory.mktemp("tiny-embedder")
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    model.save(str(folder))
    return folder
