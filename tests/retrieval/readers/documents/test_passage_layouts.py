"""DPR, MS MARCO, Natural Questions, BEIR, chats, and tables within rows."""

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
from retrieval.readers.documents.instructions import Triple, read_triples
from retrieval.readers.tables.csv_tables import read_csv
from retrieval.readers.tables.table_rows import read_tables
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, TablesTask
from retrieval.tasks.qa.inputs import document_files, question_files
from retrieval.tasks.qa.task import holds_instructions
from tests.retrieval.read_all import read_documents, read_questions

Write = Callable[[str, str], Path]
TOOLS = "instruction_with_tools_or_pictures"


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> tuple[dict[str, Document], list[Question], Tally]:
    tally, task = Tally(), QaTask(source=str(path))
    documents = read_documents(document_files(task), tally, layout=task.format)
    return documents, read_questions(question_files(task), documents, tally, task.format), tally


def test_dpr(write: Write) -> None:
    passage = {"title": "Oslo", "text": "Oslo is the capital."}
    row = {
        "question": "What?",
        "answers": ["Oslo"],
        "positive_ctxs": [passage, {"title": "", "text": "Capital Oslo."}],
    }
    row |= {"negative_ctxs": [], "hard_negative_ctxs": [{"title": "Bonn", "text": "Bonn was one."}]}
    bare = row | {"positive_ctxs": []}
    documents, (question,), tally = read(write("dpr.json", json.dumps([row, bare, row | {"answers": []}])))
    assert [d.title for d in documents.values()] == ["Oslo", "", "Bonn"]
    assert len(question.oracle_ids) == 2 and not question.needs_all
    assert tally.dropped["question_without_its_paragraphs"] == tally.dropped["question_unanswerable"] == 1


def test_ms_marco(write: Write) -> None:
    columns = {
        "passage_text": ["Oslo is the capital.", "Bonn is not."],
        "is_selected": [1, 0],
        "url": ["", ""],
    }
    row = {"query": "capital?", "query_id": 7, "passages": columns, "answers": ["Oslo"]}
    none = row | {"query_id": 8, "answers": ["No Answer Present."]}
    documents, (question,), tally = read(write("m.jsonl", lines([row, none])))
    assert (question.id, question.answers) == ("7", ("Oslo",))
    assert documents[question.context_id].text == "Oslo is the capital."
    assert tally.dropped["question_unanswerable"] == 1 and len(documents) == 2
    with pytest.raises(InputError, match=r"one object of columns instead of rows"):
        read(write("v.json", json.dumps({"query": {"0": "q"}, "passages": {"0": []}})))


def nq(short: list[dict[str, int]], spoken: str = "NONE", long: int = 0) -> dict[str, Any]:
    return {
        "example_id": 1,
        "question_text": "capital ?",
        "document_text": "<P> Oslo is it . </P> <P> Bonn was it . </P>",
        "long_answer_candidates": [
            {"start_token": 0, "end_token": 6, "top_level": True},
            {"start_token": 6, "end_token": 12, "top_level": True},
        ],
        "annotations": [
            {
                "long_answer": {"start_token": long, "end_token": 6},
                "short_answers": short,
                "yes_no_answer": spoken,
            }
        ],
    }


@pytest.mark.parametrize(
    ("row", "answers", "reason"),
    [
        (nq([{"start_token": 1, "end_token": 2}]), ("Oslo",), ""),
        (nq([], "YES"), ("yes",), ""),
        (nq([]), (), "question_with_a_long_answer_only"),
        (nq([], long=-1), (), "question_unanswerable"),
    ],
)
def test_natural_questions(write: Write, row: dict[str, Any], answers: tuple[str, ...], reason: str) -> None:
    documents, questions, tally = read(write("nq.jsonl", lines([row])))
    assert [d.text for d in documents.values()] == ["Oslo is it .", "Bonn was it ."]
    if reason:
        assert tally.dropped[reason] == 1 and not questions
    else:
        assert questions[0].answers == answers and documents[questions[0].context_id].text.startswith("Oslo")


def test_beir_has_documents_and_no_answers(write: Write) -> None:
    corpus = write("beir/corpus.jsonl", lines([{"_id": "d1", "title": "Oslo", "text": "It is the capital."}]))
    questions = write(
        "q.jsonl", lines([{"id": "q", "document_id": "d1", "question": "capital?", "answers": ["Oslo"]}])
    )
    documents = read_documents(document_files(QaTask(source=str(corpus))), Tally())
    assert documents["d1"].title == "Oslo"
    task = QaTask(source=str(corpus), questions=str(questions))
    assert len(read_questions(question_files(task), documents, Tally())) == 1
    with pytest.raises(InputError, match=r"corpus\.jsonl: BEIR's queries have no answers to teach; give"):
        read(corpus)


def say(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


CHAT = [say("system", "Be short."), say("user", "Hi"), say("assistant", "Hello."), say("user", "Bye?")]


@pytest.mark.parametrize(
    ("row", "triple"),
    [
        ({"messages": [say("user", "Hi"), say("assistant", "Ho\n")]}, ("Hi", "", "Ho\n")),
        ({"messages": [*CHAT, say("assistant", "Bye.")]},
         ("Be short.", "User: Hi\n\nAssistant: Hello.\n\nUser: Bye?", "Bye.")),
        ({"messages": CHAT}, ("Be short.", "Hi", "Hello.")),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
         ("Hi", "", "Ho")),
        ({"prompt": "Hi", "completion": "Ho"}, ("Hi", "", "Ho")),
        ({"prompt": [say("user", "Hi")], "completion": [say("assistant", "Ho")]}, ("Hi", "", "Ho")),
        ({"prompt": "Hi", "response": 12}, ("Hi", "", "12")),
        ({"messages": [say("user", [{"type": "text", "text": "Hi"}]), say("assistant", "Ho")]},
         ("Hi", "", "Ho")),
        ({"instruction": "Hi", "context": "c", "response": "Ho"}, ("Hi", "c", "Ho")),
    ],
)  # fmt: skip
def test_chats_are_instructions(write: Write, row: dict[str, Any], triple: tuple[str, ...]) -> None:
    task = QaTask(source=str(write("a.jsonl", lines([row]))))
    assert holds_instructions(task)
    (found,) = read_triples(document_files(task), Tally())
    assert isinstance(found, Triple) and (found.instruction, found.input, found.output) == triple


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [say("user", "Hi")]}, "instruction_without_output"),
        ({"messages": []}, "instruction_without_output"),
        ({"messages": [say("user", "Hi"), say("tool", "x"), say("assistant", "y")]}, TOOLS),
        ({"messages": [say("user", [{"type": "image_url"}]), say("assistant", "y")]}, TOOLS),
    ],
)  # fmt: skip
def test_chats_without_an_answer_are_counted(write: Write, row: dict[str, Any], reason: str) -> None:
    tally = Tally()
    files = document_files(QaTask(source=str(write("a.jsonl", lines([row])))))
    assert list(read_triples(files, tally)) == []
    assert tally.dropped == {reason: 1} and tally.read["instructions"] == 1


TABLE = {
    "header": ["City", "People"],
    "rows": [["Oslo", "700,000"], ["Bergen", "290000"]],
    "name": "csv/1.csv",
}


def test_tables_within_rows(write: Write, tmp_path: Path) -> None:
    row = {"id": "nt-1", "question": "which is largest?", "answers": ["Oslo"], "table": TABLE}
    pq.write_table(pa.Table.from_pylist([row, row | {"id": "nt-2", "answers": []}]), tmp_path / "w.parquet")
    tally = Tally()
    tables, (question,) = read_tables(tmp_path, tmp_path / "w.parquet", tally, "w.parquet")
    assert tables[question.context_id].rows[0] == ("Oslo", "700,000") and question.answers == ("Oslo",)
    assert tally.dropped == {"question_unanswerable": 1} and tally.read["tables"] == 1
    metrics = build_record_files(
        ContextConfig(test_share=0.0, tables=TablesTask(source=str(tmp_path / "w.parquet"))), tmp_path / "out"
    )
    (record,) = read_records(tmp_path / "out" / "records.parquet")
    assert record["output"] == "Oslo" and "Oslo | 700,000" in record["input"] and metrics["records"] == 1


@pytest.mark.parametrize(
    ("sql", "answers"),
    [
        ({"sel": 0, "agg": 0, "conds": [[1, 0, "700000"]]}, ("Oslo",)),
        ({"sel": 0, "agg": 3, "conds": []}, ("2",)),
        ({"sel": 1, "agg": 4, "conds": [[0, 0, "OSLO"]]}, ("700000",)),
        ({"sel": 0, "agg": 0, "conds": {"column_index": [1], "operator_index": [2], "condition": ["300000"]}},
         ("Bergen",)),
    ],
)  # fmt: skip
def test_wikisql_queries_are_executed(
    write: Write, tmp_path: Path, sql: Any, answers: tuple[str, ...]
) -> None:
    write("dev.tables.jsonl", lines([{"id": "1-1", **TABLE}]))
    path = write("dev.jsonl", lines([{"question": "?", "table_id": "1-1", "sql": sql}]))
    _, (question,) = read_tables(tmp_path, path, Tally(), path.name)
    assert question.answers == answers


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a,b\nC:\\temp\\,"C:\\Users\\"\n', [["a", "b"], ["C:\\temp\\", "C:\\Users\\"]]),
        ('"a","b"\n"x \\"y\\"","c\\\\d"\n', [["a", "b"], ['x "y"', "c\\d"]]),
        ('a,b\n"x ""y""",2\n', [["a", "b"], ['x "y"', "2"]]),
        ('sep=;\r\na;b\r\n1;2\r\n', [["a", "b"], ["1", "2"]]),
        ('a,b\n5" pipe,3\n', [["a", "b"], ['5" pipe', "3"]]),
        ("a,b\n" + "x" * 200_000 + ",1\n", [["a", "b"], ["x" * 200_000, "1"]]),
        ('a,b\n"' + "x, " * 60_000 + 'x",1\n', [["a", "b"], ["x, " * 60_000 + "x", "1"]]),
        ("a;b\n1;" + "y" * 1_000_000 + "\n", [["a", "b"], ["1", "y" * 1_000_000]]),
    ],
)  # fmt: skip
def test_csv_cells_are_read_as_written(write: Write, text: str, rows: list[list[str]]) -> None:
    assert read_csv(write("t.csv", text))[0] == rows


def test_an_open_quote_loses_no_rows(write: Write) -> None:
    with pytest.raises(InputError, match=r"t\.csv: a quotation mark opens a cell and none closes it"):
        read_csv(write("t.csv", 'a,b\n"1,2\n3,4\n'))


def test_unanswerable_questions_teach_to_abstain(write: Write, tmp_path: Path) -> None:
    docs = write("docs.jsonl", lines([{"id": i, "text": f"Thing {i} is\nsmall."} for i in range(4)]))
    asked: list[dict[str, Any]] = [{"id": 1, "document_id": 1, "question": "size?", "answers": [2.5]}]
    asked += [
        {"id": n, "document_id": 2, "question": "age?", "answers": a}
        for n, a in enumerate(([], None, [""]), 5)
    ]
    questions = write("q.jsonl", lines(asked))
    for abstain in (True, False):
        task = QaTask(
            source=str(docs),
            questions=str(questions),
            legs=["bm25"],
            n_contexts=2,
            oracle_share=1.0,
            abstain=abstain,
        )
        out = tmp_path / f"out{abstain}"
        report = build_record_files(ContextConfig(test_share=0.0, near_duplicates="off", qa=task), out)[
            "tasks"
        ]["qa"]
        records = read_records(out / "records.parquet")
        outputs = sorted(record["output"] for record in records)
        if abstain:
            assert outputs == ["2.5", *["Not in the documents"] * 3]
            assert report["read"]["questions_unanswerable"] == 3
            assert all("Thing 2 is\nsmall." in r["input"] and not r["oracle_in_context"] for r in records[1:])
        else:
            assert outputs == ["2.5"] and report["dropped"] == {"question_unanswerable": 3}
