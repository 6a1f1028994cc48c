"""Chunks: counted by the model's own tokenizer, with offsets back, and questions that find their chunk."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.inputs import input_digests
from retrieval.build.record_files import read_records
from retrieval.corpus.chunking import (
    chunk_document,
    holding_chunks,
    load_chunker,
    with_chunk_oracles,
)
from retrieval.corpus.types import Document, Question, Tally
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask
from retrieval.text.normalize import fold, keep_lines
from retrieval.text.token_counter import load_counter
from tests.retrieval.conftest import TOPICS

Write = Callable[[str, str], Path]
TOKENIZER = Path(__file__).resolve().parents[3] / "data" / "tiny-llama"

LONG = "\n\n".join(
    f"Part {i}. The {TOPICS[i % 9]} was made in {1900 + i}, they say.\n\tIt cost {i * 7} coins — naïve 😀!  "
    "Nobody knows\r\nwhy that was so, and nobody asked the maker."
    for i in range(12)
)


@pytest.mark.parametrize(("tokens", "overlap"), [(16, 0), (40, 0), (40, 15), (100, 30)])
def test_chunks_fit_and_lie_where_they_say(tokens: int, overlap: int) -> None:
    count = load_counter(TOKENIZER).count
    chunks = chunk_document(
        Document("d", "T", fold(LONG), "f", 3), LONG, load_chunker(TOKENIZER, tokens, overlap)
    )
    assert len(chunks) > 3
    for chunk in chunks:
        own = LONG[chunk.start : chunk.end]
        assert (chunk.id, chunk.text) == (f"d@{chunk.start}-{chunk.end}", keep_lines(own))
        assert 0 < count(own) <= tokens
        assert (chunk.parent, chunk.context_id, chunk.title, chunk.source, chunk.row) == (
            "d",
            "d",
            "T",
            "f",
            3,
        )
    seen = {i for chunk in chunks for i in range(chunk.start, chunk.end)}
    assert "".join(c for i, c in enumerate(LONG) if i not in seen).strip() == ""


def test_neighbours_overlap_by_whole_sentences() -> None:
    text = " ".join(f"The {TOPICS[i % 9]} was made in {1900 + i}." for i in range(40))
    count = load_counter(TOKENIZER).count
    for overlap in (0, 20):
        chunks = chunk_document(Document("d", "", text), text, load_chunker(TOKENIZER, 48, overlap))
        shared = [text[b.start : a.end] for a, b in itertools.pairwise(chunks)]
        assert all((count(part) > 0) == (overlap > 0) and count(part) <= overlap for part in shared)


@pytest.mark.parametrize("unbroken", ["4f", "漢字"])
def test_a_run_without_words_or_sentences_is_cut_in_bearable_time(unbroken: str) -> None:
    # Such as a picture in base64. Without a limit, this takes the square of the length: hours.
    text = "Before. " + unbroken * 50_000 + " After."
    began = time.monotonic()
    chunks = chunk_document(Document("d", "T", text, "f", 1), text, load_chunker(TOKENIZER, 100))
    assert time.monotonic() - began < 60
    assert "".join(text[chunk.start : chunk.end] for chunk in chunks).replace(" ", "") == text.replace(
        " ", ""
    )
    count = load_counter(TOKENIZER).count
    assert max(count(chunk.text) for chunk in chunks) <= 100


def test_a_short_document_stays_whole() -> None:
    document = Document("d", "T", "short text")
    assert chunk_document(document, "short  text\n", load_chunker(TOKENIZER, 40)) == [document]


def test_a_sentencepiece_model_counts_too(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "llama2-tokenizer" / "tokenizer.model"
    if not source.is_file():
        pytest.skip(f"no sentencepiece model at {source}")
    shutil.copy(source, tmp_path / "tokenizer.model")
    count = load_counter(tmp_path).count
    chunks = chunk_document(Document("d", "", fold(LONG)), LONG, load_chunker(tmp_path, 32))
    assert len(chunks) > 5
    assert all(count(LONG[c.start : c.end]) <= 32 for c in chunks)


def chunked() -> list[Document]:
    return chunk_document(Document("d", "", fold(LONG)), LONG, load_chunker(TOKENIZER, 40, 10))


def test_the_span_decides_before_the_words() -> None:
    chunks = chunked()
    start = LONG.index("coins", 900)
    question = Question("q", "d", "?", ("coins",), span=(start, start + 5))
    held = holding_chunks(question, chunks)
    assert held and all(c.start <= start and start + 5 <= c.end for c in held)
    assert len(held) < len(holding_chunks(Question("q", "d", "?", ("Coins!",)), chunks))
    assert holding_chunks(Question("q", "d", "?", ("191",)), chunks) == [], "a part of a word is no answer"


def test_questions_have_chunks_as_oracles() -> None:
    chunks = chunked()
    short = Document("s", "", "short")
    by_document = {"d": chunks, "s": [short]}
    tally = Tally()
    words, own, whole, both = with_chunk_oracles(
        [
            Question("1", "d", "?", ("1907",)),
            Question("2", "d", "?", ("in my own words",)),
            Question("3", "s", "?", ("x",)),
            Question("4", "d", "?", ("1907",), oracles=("d", "s")),
        ],
        by_document,
        tally,
    )
    assert words.context_id == "d" and words.oracle_ids == tuple(c.id for c in chunks if "1907" in c.text)
    assert not words.needs_all
    assert own.oracle_ids == tuple(c.id for c in chunks)
    assert whole == Question("3", "s", "?", ("x",))
    assert both.needs_all and both.oracle_ids == (words.oracle_ids[0], "s")
    assert tally.read == {"documents_asked_by_chunk": 2, "documents_asked_as_a_whole": 1}


def corpus(write: Write) -> QaTask:
    documents, questions = [], []
    for i in range(20):
        year = 1500 + i
        text = "\n".join(f"Sentence {j} of {i} about the {TOPICS[(i + j) % 9]}." for j in range(30))
        text += f"\nThe {TOPICS[i % 9]} number {i} was first seen in {year}.\n" + text
        documents.append({"id": f"d{i}", "title": f"Book {i}", "text": text})
        asked = f"When was the {TOPICS[i % 9]} number {i} first seen?"
        questions.append({"id": f"q{i}", "document_id": f"d{i}", "question": asked, "answers": [str(year)]})
    source = write("d.jsonl", "".join(json.dumps(d) + "\n" for d in documents))
    asked_in = write("q.jsonl", "".join(json.dumps(q) + "\n" for q in questions))
    return QaTask(
        source=str(source), questions=str(asked_in), legs=["bm25"], chunk_tokens=64, chunk_overlap=16
    )


def test_a_build_over_chunks(write: Write, tmp_path: Path) -> None:
    task = corpus(write)
    config = ContextConfig(test_share=0.3, tokenizer=str(TOKENIZER), qa=task)
    metrics = build_record_files(config, tmp_path / "out")
    assert metrics["inputs"]["tokenizer/tokenizer.json"] == input_digests(config)["tokenizer/tokenizer.json"]
    texts = {}
    for line in Path(task.source).read_text().splitlines():
        row = json.loads(line)
        texts[row["id"]] = row["text"]
    records = read_records(tmp_path / "out" / "records.parquet")
    split = {r["context_id"]: r["split"] for r in records}
    assert len(records) == 20 and set(split.values()) == {"train", "test"}
    for record in records:
        for name in record["context_ids"]:
            document, _, span = name.partition("@")
            start, end = map(int, span.split("-"))
            assert keep_lines(texts[document][start:end]) in record["input"]
            if record["split"] == "train":
                assert split[document] == "train"
        whole = texts[record["context_id"]]
        assert all(record["output"] in whole[slice(*offsets(n))] for n in record["oracle_ids"])
        found = set(record["oracle_ids"]) & set(record["context_ids"])
        assert record["oracle_in_context"] == bool(found)
    assert metrics["tasks"]["qa"]["read"]["chunks"] > 60


def offsets(name: str) -> tuple[int, int]:
    start, end = name.partition("@")[2].split("-")
    return int(start), int(end)


def test_chunks_need_a_tokenizer_and_a_sensible_overlap(write: Write, tmp_path: Path) -> None:
    task = corpus(write)
    with pytest.raises(InputError, match=r"context\.tokenizer is empty"):
        build_record_files(ContextConfig(qa=task), tmp_path / "out")
    with pytest.raises(InputError, match=r"has no tokenizer\.json or tokenizer\.model"):
        build_record_files(ContextConfig(qa=task, tokenizer=str(tmp_path)), tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer .*tokenizer\.json cannot be read"):
        build_record_files(ContextConfig(qa=task, tokenizer=str(tmp_path)), tmp_path / "out")
    with pytest.raises(ValidationError, match="chunk_overlap must be below chunk_tokens"):
        QaTask(source="x", chunk_tokens=8, chunk_overlap=8)
    assert not list((tmp_path / "out").glob("*"))
