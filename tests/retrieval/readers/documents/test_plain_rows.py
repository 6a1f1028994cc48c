"""Questions and documents of one's own: names that nearly fit, days, sentences, missing answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.documents.hotpotqa import joined_sentences
from tests.retrieval.read_all import read_documents, read_questions

Write = Callable[[str, str], Path]


def files(*paths: Path) -> list[SourceFile]:
    return [SourceFile(path, path.name) for path in paths]


KNOWN = ["kettle.md", "guide/lamp.md", "Prices.PDF", "d-12"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kettle", "did you mean 'kettle.md'?"),
        ("Kettle.md", "did you mean 'kettle.md'?"),
        ("lamp", "did you mean 'guide/lamp.md'?"),
        ("lamp.md", "did you mean 'guide/lamp.md'?"),
        ("guide/lamp", "did you mean 'guide/lamp.md'?"),
        ("prices", "did you mean 'Prices.PDF'?"),
        ("ketle.md", "did you mean 'kettle.md'?"),
        ("d12", "did you mean 'd-12'?"),
        ("zebra", "there are 'kettle.md', 'guide/lamp.md', 'Prices.PDF'"),
    ],
)
def test_a_name_that_nearly_fits_is_proposed(write: Write, name: str, said: str) -> None:
    row = {"id": "q", "document_id": name, "question": "?", "answers": ["a"]}
    with pytest.raises(InputError) as caught:
        read_questions(files(write("q.jsonl", json.dumps(row))), KNOWN, Tally())
    assert f"q.jsonl:1: question 'q' names document {name!r}, which does not exist; {said}" in str(
        caught.value
    )


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("column", "seconds"),
    [
        (pa.array([date(2024, 5, 1)], pa.date32()), 1714521600.0),
        (pa.array([date(2024, 5, 1)], pa.date64()), 1714521600.0),
        (pa.array([NOON], pa.timestamp("s", "UTC")), 1714564800.0),
        (pa.array([NOON], pa.timestamp("us", "UTC")), 1714564800.0),
        (pa.array([1714564800], pa.int64()), 1714564800.0),
        (pa.array([1714564800000], pa.int64()), 1714564800.0),
        (pa.array(["1714564800"], pa.string()), 1714564800.0),
        (pa.array(["Wed, 1 May 2024 14:00:00 +0200"], pa.string()), 1714564800.0),
        (pa.array(["2024-05-01"], pa.string()), 1714521600.0),
        (pa.array([None], pa.date32()), None),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_days_and_moments_of_parquet(tmp_path: Path, column: pa.Array, seconds: float | None) -> None:
    pq.write_table(pa.table({"id": ["1"], "text": ["x"], "time": column}), tmp_path / "d.parquet")
    assert read_documents(files(tmp_path / "d.parquet"), Tally())["1"].time == seconds


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        (["It costs 12 euro.", "It is red."], "It costs 12 euro. It is red."),
        (["It costs 12 euro.", " It is red."], "It costs 12 euro. It is red."),
        (["One. ", "Two.", "Three."], "One. Two. Three."),
        (["One.", "", "Two."], "One. Two."),
        (["値段は十二です。", "赤いです。"], "値段は十二です。赤いです。"),
        (["One.\n", "Two."], "One.\nTwo."),
        ([], ""),
    ],
)
def test_a_blank_stands_between_sentences(sentences: list[str], text: str) -> None:
    assert joined_sentences(sentences) == text


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("answer", "supporting_facts"), "field answer, supporting_facts is missing, as in HotpotQA's test"),
        (("supporting_facts",), "field supporting_facts is missing, as in HotpotQA's test file"),
        (("answer",), "field answer is missing, as in HotpotQA's test file"),
    ],
)
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_hotpotqa_without_answers_is_named(
    write: Write, tmp_path: Path, missing: tuple[str, ...], said: str, ending: str
) -> None:
    row: dict[str, Any] = {"_id": "h", "question": "?", "answer": "yes", "type": "bridge", "level": "hard"}
    row |= {"context": [["A", ["One."]]], "supporting_facts": [["A", 0]]}
    if ending == ".parquet":
        row["context"] = {"title": ["A"], "sentences": [["One."]]}
        row["supporting_facts"] = {"title": ["A"], "sent_id": [0]}
    for name in missing:
        del row[name]
    path = tmp_path / f"hotpot{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if ending == ".json" else row))
    with pytest.raises(InputError) as caught:
        read_questions(files(path), ["x"], Tally(), "hotpotqa")
    assert said in str(caught.value) and "take the train or dev file" in str(caught.value)


ASKED = "id\tutterance\tcontext\ttargetValue\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_questions_of_a_table_with_marks_of_windows(
    write: Write, tmp_path: Path, mark: str, end: str
) -> None:
    from retrieval.readers.tables.wikitables import read_tables

    write("csv/1.csv", "").write_bytes(f"{mark}City,Size\nOslo,7\n".replace("\n", end).encode())
    path = write("q.tsv", "")
    path.write_bytes(f"{mark}{ASKED}q1\tlargest?\tcsv/1.csv\tOslo\n".replace("\n", end).encode())
    (table,), (question,) = (
        list(found) for found in _tables(read_tables(tmp_path, path, Tally(), path.name))
    )
    assert (table.header, table.rows) == (("City", "Size"), (("Oslo", "7"),))
    assert (question.id, question.answers) == ("q1", ("Oslo",))


def _tables(found: Any) -> tuple[Any, Any]:
    tables, questions = found
    return (tables.values() if isinstance(tables, dict) else tables), questions
