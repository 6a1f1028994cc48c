"""Documents that are files, and the layouts of SQuAD and HotpotQA in both of their forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.corpus.types import Document, Question, Tally
from retrieval.readers.documents.documents import stream_documents, stream_questions
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask
from retrieval.tasks.qa.inputs import document_files, question_files
from tests.retrieval.read_all import read_documents

from ..fuzz_damage import pdf

Write = Callable[[str, str], Path]


def read(path: Path, **fields: Any) -> tuple[dict[str, Document], list[Question], Tally]:
    tally, task, left_out = Tally(), QaTask(source=str(path), **fields), dict[str, str]()
    found = stream_documents(document_files(task), tally, None, task.format, left_out)
    documents = {document.id: document for document in found}
    asked = stream_questions(question_files(task), documents, tally, task.format, left_out=left_out)
    return documents, list(asked), tally


def test_files_of_text(write: Write, tmp_path: Path) -> None:
    write("docs/a/notes.txt", "\ufeffplain\n\n  text ")
    write("docs/guide.md", "\n# The *lamp* #\n\nIt takes a bulb.\n## Bulbs\n")
    write("docs/late.md", "Before.\n\n# A heading further down\n\nAfter.")
    write("docs/empty.txt", " \n")
    (tmp_path / "docs" / "manual.pdf").write_bytes(pdf(["Fill the kettle.", "Press the switch."]))
    (tmp_path / "docs" / "scan.pdf").write_bytes(pdf([]))
    tally = Tally()
    documents = read_documents(document_files(QaTask(source=str(tmp_path / "docs"))), tally)
    assert {d.id: (d.title, d.text) for d in documents.values()} == {
        "a/notes.txt": ("notes", "plain\n\n  text"),
        "guide.md": ("The *lamp*", "It takes a bulb.\n## Bulbs"),
        "late.md": ("A heading further down", "Before.\n\n# A heading further down\n\nAfter."),
        "manual.pdf": ("manual", "Fill the kettle.\nPress the switch."),
    }
    assert tally.as_dict() == {
        "read": {"documents": 6, "pages": 2, "pages_without_text": 1},
        "dropped": {"document_without_text": 2},
    }


def test_broken_and_locked_pdfs_are_named(write: Write, tmp_path: Path) -> None:
    from pypdf import PdfWriter

    path = write("x.pdf", "no pdf at all")
    with pytest.raises(InputError, match=r"x\.pdf: not a readable PDF"):
        read_documents(document_files(QaTask(source=str(path))), Tally())
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(InputError, match=r"locked\.pdf: the PDF is encrypted; save it without a password"):
        read_documents(document_files(QaTask(source=str(tmp_path / "locked.pdf"))), Tally())
    with pytest.raises(InputError, match=r"b\.txt:2: not UTF-8"):
        (tmp_path / "b.txt").write_bytes(b"one\n\xff")
        read_documents(document_files(QaTask(source=str(tmp_path / "b.txt"))), Tally())


CONTEXT = "Oslo  is the capital.\nBergen is not."


def qas(*starts: int) -> list[dict[str, Any]]:
    return [
        {"id": f"s{n}", "question": "Which?", "answers": [{"text": "Bergen", "answer_start": start}]}
        for n, start in enumerate(starts)
    ]


def test_squad_in_both_forms(write: Write, tmp_path: Path) -> None:
    paragraphs = [{"context": CONTEXT, "qas": qas(22, 3)}]
    nested = {"data": [{"title": "Two_cities", "paragraphs": paragraphs}]}
    rows = [
        {"id": q["id"], "title": "Two_cities", "context": CONTEXT, "question": q["question"]}
        | {
            "answers": {
                "text": [a["text"] for a in q["answers"]],
                "answer_start": [a["answer_start"] for a in q["answers"]],
            }
        }
        for q in paragraphs[0]["qas"]
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "flat.parquet")
    flat_lines = write("flat.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = [
        read(p)
        for p in (write("train.json", json.dumps(nested, indent=1)), tmp_path / "flat.parquet", flat_lines)
    ]
    for documents, questions, _ in found:
        (document,) = documents.values()
        assert (document.title, document.text) == ("Two cities", "Oslo  is the capital.\nBergen is not.")
        assert [q.span for q in questions] == [(22, 28), None], "a wrong answer_start is no place"
        assert {q.context_id for q in questions} == {document.id} == set(found[0][0])
    assert found[1][2].dropped == found[2][2].dropped == {"document_repeated": 1}


@pytest.mark.parametrize(
    "empty",
    [
        [{"text": "", "answer_start": -1}],
        [{"text": " \n", "answer_start": 0}, {"text": None, "answer_start": None}],
        {"text": [], "answer_start": []},
        {"text": [""], "answer_start": [-1]},
        [""],
        "",
        None,
    ],
)
def test_squads_empty_answers_count_as_unanswerable(write: Write, empty: Any) -> None:
    asked = [*qas(22), {"id": "none", "question": "Who?", "answers": empty}]
    paragraphs = [{"context": CONTEXT, "qas": asked}]
    nested = write("train.json", json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    _, questions, tally = read(nested)
    assert [question.answers for question in questions] == [("Bergen",)]
    assert tally.dropped == {"question_unanswerable": 1}


def hotpot(*facts: str, columns: bool = False) -> dict[str, Any]:
    context = [["A", ["One. ", "Two."]], ["B", ["Three."]], ["C", ["Four."]]]
    row: dict[str, Any] = {
        "_id": "h" + "".join(facts),
        "question": "Is it?",
        "answer": "yes",
        "level": "easy",
    }
    row |= {"context": context, "supporting_facts": [[title, 0] for title in facts]}
    if columns:
        row["id"] = row.pop("_id")
        row["context"] = {"title": [c[0] for c in context], "sentences": [c[1] for c in context]}
        row["supporting_facts"] = {"title": list(facts), "sent_id": [0] * len(facts)}
    return row


def test_hotpotqa_in_both_forms(write: Write, tmp_path: Path) -> None:
    asked = (("B", "A", "B"), ("C",), ("A", "Z"))
    nested = write("hotpot.json", json.dumps([hotpot(*facts) for facts in asked]))
    pq.write_table(
        pa.Table.from_pylist([hotpot(*facts, columns=True) for facts in asked]), tmp_path / "h.parquet"
    )
    for path in (nested, tmp_path / "h.parquet"):
        documents, (both, one), tally = read(path)
        assert [d.text for d in documents.values()] == ["One. Two.", "Three.", "Four."]
        assert [documents[name].title for name in both.oracle_ids] == ["B", "A"]
        assert both.context_id == both.oracle_ids[0] and both.needs_all
        assert [documents[name].title for name in one.oracle_ids] == ["C"]
        assert tally.dropped == {"document_repeated": 6, "question_without_its_paragraphs": 1}


def test_records_of_hotpotqa_need_all_their_paragraphs(write: Write, tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        own = [
            [f"Town {i}", [f"Town {i} has {i} gates."]],
            [f"River {i}", [f"River {i} is {i * 7} miles long."]],
        ]
        row = {"_id": f"h{i}", "question": f"Has Town {i} a longer name than River {i}?", "answer": "no"}
        facts = [[f"Town {i}", 0], [f"River {i}", 0]]
        rows.append(row | {"supporting_facts": facts, "context": [*own, ["Bonn", ["Bonn is far."]]]})
    path = write("hotpot.json", json.dumps(rows))
    task = QaTask(source=str(path), legs=["bm25"], n_contexts=3, oracle_share=1.0)
    build_record_files(ContextConfig(test_share=0.3, qa=task), tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    assert len(records) == 12
    for record in records:
        assert len(record["oracle_ids"]) == 2
        assert record["oracle_in_context"] == (set(record["oracle_ids"]) <= set(record["context_ids"]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {"data": [{"title": "T", "paragraphs": [{"qas": []}]}]},
            r"item 1 \(line 1\), paragraph 1: field context is missing",
        ),
        (
            {"data": [{"title": "T", "paragraphs": [{"context": "x"}]}]},
            r"paragraph 1: field qas is not a list of objects",
        ),
        ({"data": [{"title": "T"}]}, r"item 1 \(line 1\): field paragraphs is missing"),
        (
            {"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "q", "question": "?"}]}]}]},
            r"question 1: field answers",
        ),
        ({"data": {}}, r"broken JSON at column \d+ \(no list data in the object\)"),
        (
            [{"supporting_facts": [], "context": [["A"]], "question": "?", "answer": "x"}],
            r"item 1 \(line 1\): field context is not a list of pairs",
        ),
        (
            [{"supporting_facts": [], "context": [["A", ["x"]]], "question": "?", "answer": "x"}],
            r"field _id is empty or no text",
        ),
        (
            [hotpot("A") | {"supporting_facts": [["A", "first"]]}],
            r"item 1 \(line 1\): field supporting_facts has 'first' for a sentence number",
        ),
        ([hotpot("A") | {"answer": ["x", {}]}], r"item 1 \(line 1\): field answer is no text and no list"),
    ],
)
def test_broken_layouts_are_named(write: Write, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(write("set.json", json.dumps(value)))
    assert "set.json" in str(caught.value) and "\n" not in str(caught.value)


def _squad(context: Any) -> dict[str, Any]:
    found = [{"context": context, "qas": qas(0)}, {"context": CONTEXT, "qas": [qas(0)[0] | {"id": "x"}]}]
    return {"data": [{"title": "T", "paragraphs": found}]}


def _raft(oracle: Any) -> list[dict[str, Any]]:
    row = {"question": "?", "context": {"sentences": [["One."]]}, "cot_answer": "<ANSWER>: a"}
    return [row | {"oracle_context": oracle}, row | {"oracle_context": "Two."}]


def _ms_marco(text: Any) -> list[dict[str, Any]]:
    row = {"query": "?", "answers": ["a"]}
    rows = [{"passage_text": found, "is_selected": 1} for found in (text, "One.")]
    return [row | {"passages": [found]} for found in rows]


def _dpr(text: Any) -> list[dict[str, Any]]:
    rows = [[{"title": "A", "text": found}] for found in (text, "One.")]
    return [{"question": "?", "answers": ["a"], "positive_ctxs": found} for found in rows]


@pytest.mark.parametrize("empty", ["", " \n", None, float("nan")])
@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (_squad, "question_of_document_without_text"),
        (_raft, "question_of_document_without_text"),
        (_ms_marco, "question_of_document_without_text"),
        (_dpr, "question_without_its_paragraphs"),
    ],
)
def test_texts_that_are_empty_are_counted(
    write: Write, layout: Callable[[Any], Any], reason: str, empty: Any
) -> None:
    documents, questions, tally = read(write("set.json", json.dumps(layout(empty))))
    assert all(document.text for document in documents.values())
    assert len(questions) == 1
    assert tally.dropped["document_without_text"] == 1 and tally.dropped[reason] == 1
    assert tally.read["questions"] == 2
    assert tally.read["documents"] == len(documents) + tally.dropped.total() - tally.dropped[reason]


def test_an_empty_paragraph_of_hotpotqa_is_counted(write: Write) -> None:
    row = hotpot("A") | {"context": [["A", ["One."]], ["B", [" ", ""]], ["C", []]]}
    named = row | {"_id": "b", "supporting_facts": [["B", 0]]}
    documents, questions, tally = read(write("hotpot.json", json.dumps([row, named])))
    assert [document.text for document in documents.values()] == ["One."]
    assert [question.id for question in questions] == ["hA"]
    assert tally.read == {"documents": 6, "questions": 2}
    assert tally.dropped == {
        "document_repeated": 1, "document_without_text": 4, "question_without_its_paragraphs": 1,
    }  # fmt: skip


def test_questions_are_not_read_from_text(write: Write) -> None:
    with pytest.raises(InputError, match=r"a\.md: a text file holds no questions; name a \.jsonl"):
        read(write("a.md", "# A\n\ntext"))


def test_raft_rows(write: Write, tmp_path: Path) -> None:
    def row(key: str | None, texts: list[str], oracle: str, answer: str | None) -> dict[str, Any]:
        context = {"sentences": [texts], "title": [["placeholder_title"] * len(texts)]}
        return {
            "id": key,
            "type": "general",
            "question": f"What about {key}?",
            "context": context,
            "oracle_context": oracle,
            "cot_answer": answer,
            "instruction": "repeats it all",
        }

    rows = [
        row("a", ["One.", "Two."], "One.", "Why. <ANSWER>:  the\nfirst "),
        row(None, ["Two.", "Three."], "Four.", "##Answer: an earlier one ##Answer: the fourth"),
        row("c", ["Two."], "Two.", "no mark"),
        row("d", ["Two."], "Two.", None),
    ]
    path = write("r.jsonl", "".join(json.dumps(value) + "\n" for value in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for source in (path, tmp_path / "r.parquet"):
        documents, questions, tally = read(source)
        assert [document.text for document in documents.values()] == ["One.", "Two.", "Three.", "Four."]
        assert [(q.id, documents[q.context_id].text, q.answers) for q in questions] == [
            ("a", "One.", ("the\nfirst",)),
            (f"{source.name}:2", "Four.", ("the fourth",)),
        ]
        assert tally.dropped == {"document_repeated": 3, "question_without_final_answer": 2}
    bad = write("b.jsonl", json.dumps(rows[0] | {"context": ["One."]}) + "\n")
    with pytest.raises(InputError, match=r"b\.jsonl:1: field context has no list sentences of lists"):
        read(bad)
