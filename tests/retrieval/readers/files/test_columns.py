"""Any corpus by a mapping of columns: every kind of file, dialects, paths, expressions, errors that help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openpyxl import Workbook

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.columns import guess, kind_of
from retrieval.readers.files.tables import any_rows
from retrieval.readers.preview import preview
from retrieval.readers.threads.registry import read_threads
from retrieval.settings.columns import QuestionColumns, ThreadColumns
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, ThreadsTask
from tests.retrieval.read_all import read_questions

ROWS: list[dict[str, Any]] = [
    {"nr": 1, "who": "ann", "what": "Which one, please?", "to": None, "at": "2024-05-01 00:00:00"},
    {"nr": 2, "who": "bob", "what": "The red one;\nreally.", "to": 1.0, "at": 1714521660000},
]
MAPPING = {"id": "nr", "text": "what", "parent": "to", "author": "who", "time": "at"}


def csv_of(sign: str, start: str = "") -> Callable[[Path], Any]:
    cells = [["nr", "who", "what", "to", "at"]]
    cells += [[str(row[name]) if row[name] is not None else "" for name in cells[0]] for row in ROWS]
    text = "\r\n".join(sign.join(f'"{cell}"' if len(cell) > 6 else cell for cell in row) for row in cells)
    return lambda path: path.write_text(start + text, encoding="utf-8-sig", newline="")


def workbook(path: Path) -> None:
    book = Workbook()
    book.active.append([None])
    page = book.create_sheet("talk")
    page.append(list(ROWS[0]))
    for row in ROWS:
        page.append(list(row.values()))
    book.save(path)


def arrow(path: Path) -> None:
    table = pa.Table.from_pylist([{**row, "at": str(row["at"])} for row in ROWS])
    (path.parent / "state.json").write_text("{}")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


KINDS: dict[str, Callable[[Path], Any]] = {
    "a.csv": csv_of(","),
    "b.csv": csv_of(";"),
    "c.tsv": csv_of("\t"),
    "d.csv": csv_of("|"),
    "e.csv": csv_of(";", "sep=;\r\n"),
    "f.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "g.json": lambda path: path.write_text(json.dumps({"total": 2, "messages": ROWS})),
    "h.xlsx": workbook,
    "i.parquet": lambda path: pq.write_table(
        pa.Table.from_pylist([{**row, "at": str(row["at"])} for row in ROWS]), path
    ),
    "data/train/data-00000-of-00001.arrow": arrow,
}


def read(path: Path, columns: dict[str, str], **more: Any) -> tuple[list[Thread], Tally]:
    tally = Tally()
    task = ThreadsTask(source=str(path), columns=ThreadColumns(**columns), **more)
    return list(read_threads(task, tally)), tally


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_thread(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[name](path)
    mapping = MAPPING | ({"sheet": "talk"} if name.endswith("xlsx") else {})
    (thread,), tally = read(path if path.parent == tmp_path else tmp_path / "data", mapping)
    first, second = thread.posts
    assert (first.author, first.text, first.parents) == ("ann", "Which one, please?", ())
    assert (second.id, second.parents, second.text) == ("2", ("1",), "The red one; really.")
    assert (first.time, second.time) == (1714521600.0, 1714521660.0)
    assert +tally.dropped == {}


def test_sheets_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Workbook()
    for row in (list(ROWS[0]), *(list(row.values()) for row in ROWS)):
        book.active.append(row)
    book.create_sheet("prices")
    book.create_sheet("old")
    book.save(tmp_path / "book.xlsx")
    read(tmp_path / "book.xlsx", MAPPING)
    assert "the sheet Sheet is read; left out: prices, old (`sheet` names one)" in capsys.readouterr().err


def test_errors_of_formulas_are_empty_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Workbook()
    for row in (["Ask", "Right"], ["Share?", "#DIV/0!"], ["Error?", "see #DIV/0!"], ["#N/A", "#REF!"]):
        book.active.append(row)
    book.save(tmp_path / "book.xlsx")
    rows = [row for _, _, row in any_rows(tmp_path / "book.xlsx")]
    assert rows == [{"Ask": "Share?", "Right": None}, {"Ask": "Error?", "Right": "see #DIV/0!"}]
    assert "book.xlsx: 3 cells with an error of a formula" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "page;ask;right\n1;Who?;Ann\n",
            r"faq\.csv:2: qa\.question_columns\.document_id: there is no column",
        ),
        ("page;ask;right\n1;Who?;Ann\n", r"no column 'Page'; did you mean page\? The file has page, ask"),
        ("My questions;and;answers\nPage;ask;right\n", r"no column 'Page'; the file has My questions, and"),
        ('{"Page": null, "ask": "Who?", "right": "Ann"}', r"document_id: 'Page' is empty there; fill it in"),
    ],
)
def test_a_column_that_questions_lack_is_named(tmp_path: Path, text: str, said: str) -> None:
    name = "faq.jsonl" if text.startswith("{") else "faq.csv"
    (tmp_path / name).write_text(text)
    columns = QuestionColumns(question="ask", answers="right", document_id="Page", delimiter=";")
    file = SourceFile(tmp_path / name, name, columns=columns, columns_field="qa.question_columns")
    with pytest.raises(InputError, match=said):
        read_questions([file], ["1"], Tally())


def test_paths_and_expressions(tmp_path: Path) -> None:
    rows = [
        {"user": {"name": "Ann"}, "n": 1, "tags": ["q"], "a.b": "c1", "body": "hi"},
        {"user": None, "n": 2, "tags": ["a"], "a.b": "c1", "re": {"n": 1}, "body": "> hi\nyes"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = {
        "id": "{{ row['a.b'] }}-{{ n }}",
        "text": "body",
        "parent": "{{ 'c1-' ~ re.n if re }}",
        "author": "user.name",
        "thread": "a.b",
    }
    (thread,), _ = read(path, mapping)
    assert [(post.id, post.author, post.text, post.parents) for post in thread.posts] == [
        ("c1-1", "Ann", "hi", ()),
        ("c1-2", "Anonymous", "yes", ("c1-1",)),
    ]


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"author": "whoo"}, r"threads\.columns\.author is 'whoo', which is in no row; did you mean who\?"),
        ({"id": "number"}, r"number is empty, but threads\.columns\.id needs it.*the file has nr"),
        ({"id": "{{ nr * 'x' }}"}, r"\* of these values is not allowed"),
        ({"id": "{{ 'x'.ljust(1000000000) }}"}, "fails"),
        ({"id": "{{ nr.__class__.__mro__ }}"}, "fails|needs it"),
        ({"id": "{% for i in nr %}{% endfor %}"}, "statements"),
        ({"id": "{{ nr"}, "no Jinja expression"),
    ],
)
def test_wrong_mappings_are_named(mapping: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    csv_of(",")(path)
    with pytest.raises(InputError, match=said) as caught:
        read(path, MAPPING | mapping)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nr,nr\n1,2\n", r"a\.csv:1: column 'nr' is twice in the header"),
        ("nr,what,to\n1,a,b,c\n", r"a\.csv:2: 4 cells, but the header has 3"),
        ('nr,what,to\n1,"é,\n2,b,\n', r"a\.csv:2: a quote is never closed"),
        ("nr,what,to\n1,a\n", None),
    ],
)
def test_broken_and_short_tables(text: str, said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    if said is None:
        assert len(read(path, {"id": "nr", "text": "what", "parent": "to"})[0]) == 1
        return
    with pytest.raises(InputError, match=said):
        read(path, {"id": "nr", "text": "what", "parent": "to"})


def test_settings_refuse_half_a_mapping() -> None:
    with pytest.raises(ValueError, match="needs columns"):
        ThreadsTask(source="x", format="columns")
    with pytest.raises(ValueError, match="leave one of them out"):
        ThreadsTask(source="x", format="slack", columns=ThreadColumns(**MAPPING))
    with pytest.raises(ValueError, match="question_columns needs questions"):
        QaTask.model_validate(
            {"source": "x", "question_columns": {"question": "q", "answers": "a", "document_id": "d"}}
        )


def test_documents_and_questions_by_mapping(tmp_path: Path) -> None:
    (tmp_path / "guide.csv").write_text(
        "Page;Heading;Body\n" + "".join(f"p{i};Thing {i};Thing {i} costs {i + 10} euro.\n" for i in range(6))
    )
    (tmp_path / "faq.csv").write_text(
        "Page,Question,Answer\n"
        + "".join(f"p{i},What does thing {i} cost?,{i + 10} euro\n" for i in range(6))
    )
    task = QaTask.model_validate(
        {
            "source": str(tmp_path / "guide.csv"),
            "columns": {"id": "Page", "text": "Body", "title": "Heading"},
            "questions": str(tmp_path / "faq.csv"),
            "question_columns": {"question": "Question", "answers": "Answer", "document_id": "Page"},
            "legs": ["bm25"],
        }
    )
    build_record_files(ContextConfig(near_duplicates="off", test_share=0.3, qa=task), tmp_path / "out")
    records = read_records(tmp_path / "out" / "records.parquet")
    assert {record["id"]: record["gold"] for record in records}["qa:faq-3"] == ["12 euro"]
    assert len(records) == 6


def test_a_preview_guesses_the_mapping(tmp_path: Path) -> None:
    assert guess(["msg_id", "Reply-To", "sender.name", "body", "createdAt"], "threads") == {
        "id": "msg_id",
        "text": "body",
        "parent": "Reply-To",
        "author": "sender.name",
        "time": "createdAt",
    }
    assert kind_of(["question", "answer"]) == "questions" and kind_of(["url", "text"]) == "documents"
    path = tmp_path / "m.csv"
    path.write_text("msg_id;body;reply_to\n1;Which one?;\n2;The red one.;1\n")
    lines = "\n".join(preview(str(path)))
    assert "columns: {id: msg_id, text: body, parent: reply_to}" in lines and "Which one?" in lines
    with pytest.raises(InputError, match=r"set threads\.columns, such as \{id: msg_id, text: body, parent"):
        list(read_threads(ThreadsTask(source=str(tmp_path)), Tally()))
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"type": "message", "user": "U1", "ts": "1.0", "text": "hello"}]))
    assert "conversations in the format slack" in preview(str(path))[0]
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "start.md").write_text("# Start")
    assert preview(str(pages)) == [
        f"{pages}: documents, such as start.md; each file is one",
        *("", "context:", "  qa:", f"    source: {pages}"),
    ]


def test_one_conversation_says_that_nothing_is_held_out(tmp_path: Path) -> None:
    rows = [
        {"i": n, "t": f"word{n} of the talk", "p": n - 1 if n else None, "c": "general"} for n in range(30)
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ThreadColumns(id="i", text="t", parent="p", thread="c")

    def warned(block: int) -> tuple[list[str], int]:
        task = ThreadsTask(source=str(path), columns=columns, legs=["bm25"], block=block)
        config = ContextConfig(near_duplicates="off", test_share=0.3, threads=task)
        built = build_record_files(config, tmp_path / f"out{block}")["tasks"]["threads"]
        return built["warnings"], built["records"]["test"]

    (warning,), held_out = warned(500)
    assert held_out == 0 and "no records are held out (1 context in all)" in warning and "block" in warning
    assert warned(3)[0] == [] and warned(3)[1] > 0
