"""WikiTableQuestions' escapes, documents and questions, and the errors of both."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.documents.documents import stream_documents, stream_questions
from retrieval.readers.files.csv_dialect import find_separator
from retrieval.readers.tables.csv_tables import read_csv
from retrieval.readers.tables.wikitables import read_tables, unescape
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, TablesTask
from retrieval.tasks.qa.inputs import document_files
from retrieval.tasks.tables.inputs import input_files
from tests.retrieval.read_all import read_documents, read_questions

Write = Callable[[str, str], Path]
HEAD = "id\tutterance\tcontext\ttargetValue\n"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("a\\nb", "a\nb"),
        ("a\\pb", "a|b"),
        ("a\\\\nb", "a\\nb"),
        ("\\\\\\p", "\\|"),
        ("a\\x", "a\\x"),
        ("\\", "\\"),
    ],
)
def test_tsv_escapes(raw: str, plain: str) -> None:
    assert unescape(raw) == plain


def test_csv_escapes_and_cells_over_lines(write: Write, tmp_path: Path) -> None:
    write(
        "csv/1.csv",
        '"Name","Say"\n"a \\"b\\" c","back\\\\slash"\n"two\nlines","x, y"\n"short"\n"d ""e""",""\n',
    )
    tsv = write("data/training.tsv", HEAD + "q1\twho?\tcsv/1.csv\tone\\ptwo|three\n")
    tally = Tally()
    tables, questions = read_tables(tmp_path, tsv, tally, tsv.name)
    table = tables["csv/1.csv"]
    assert table.header == ("Name", "Say")
    assert table.rows == (('a "b" c', "back\\slash"), ("two lines", "x, y"), ("short", ""), ('d "e"', ""))
    assert (questions[0].answers, questions[0].row) == (("one|two", "three"), 2)
    assert tally.read["ragged_rows_padded"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"training\.tsv:1: column id, utterance, context, targetValue is missing"),
        ("id\tutterance\tcontext\n", r"training\.tsv:1: column targetValue is missing"),
        (HEAD, r"training\.tsv: no question"),
        (HEAD + "q1\twho?\n", r"training\.tsv:2: 2 tab-separated fields, expected 4"),
        (HEAD + "q1\twho?\tcsv/9.csv\tx\n", r"training\.tsv:2: table csv/9\.csv does not exist"),
        (HEAD + "q1\twho?\t../outside.csv\tx\n", r"training\.tsv:2: table \.\./outside\.csv does not exist"),
        (HEAD + "q1\twho?\tcsv/1.csv\t\n", r"training\.tsv: no question .*1 question_unanswerable"),
        (HEAD + 2 * "q1\twho?\tcsv/1.csv\tx\n", r"training\.tsv:3: id 'q1' is already used in line 2"),
        (HEAD + "q1\twho?\tcsv/2.csv\tx\n", r"training\.tsv: no question .*1 table_without_rows"),
    ],
)
def test_bad_tables_are_named(write: Write, tmp_path: Path, text: str, said: str) -> None:
    write("csv/1.csv", '"a"\n"b"\n')
    write("csv/2.csv", '"only a header"\n')
    (tmp_path.parent / "outside.csv").write_text('"a"\n"b"\n', encoding="utf-8")
    tsv = write("data/training.tsv", text)
    with pytest.raises(InputError, match=said):
        read_tables(tmp_path, tsv, Tally(), tsv.name)


TAGGED = "id\tposTags\ttargetCanon\n"


def test_canonical_values_of_a_tagged_file_and_of_a_column(write: Write, tmp_path: Path) -> None:
    write("csv/1.csv", '"a"\n"b"\n')
    rows = ("q1\twho?\tcsv/1.csv\t1,000|a\\pb", "q2\twho?\tcsv/1.csv\tx", "q3\twho?\tcsv/1.csv\ty")
    tsv = write("data/training.tsv", HEAD + "".join(f"{row}\n" for row in rows))
    # Joined and escaped as targetValue is, in another order, and not of every question.
    write("tagged/data/training.tagged", TAGGED + "q3\tNN\ty\nq1\tCD\t1000.0|a\\pb\n")
    tally = Tally()
    _, questions = read_tables(tmp_path, tsv, tally, tsv.name)
    assert [question.canonical for question in questions] == [("1000.0", "a|b"), (), ("y",)]
    assert tally.read["questions_with_canonical_values"] == 2
    tables = TablesTask(source=str(tmp_path))
    files = dict(input_files(ContextConfig(tables=tables)))
    assert files["tables/tagged/training.tagged"] == tmp_path / "tagged" / "data" / "training.tagged"
    # A column of the questions' own file goes before.
    own = "".join(f"{row}\t{canonical}\n" for row, canonical in zip(rows, ("1.0|c", "z", ""), strict=True))
    write("data/training.tsv", HEAD.strip() + "\ttargetCanon\n" + own)
    _, questions = read_tables(tmp_path, tsv, Tally(), tsv.name)
    assert [question.canonical for question in questions] == [("1.0", "c"), ("z",), ()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id\tposTags\n", r"training\.tagged:1: column targetCanon is missing; expected a tagged file"),
        (TAGGED + "q1\tNN\n", r"training\.tagged:2: 2 tab-separated fields, expected 3"),
        (
            TAGGED + "q2\tNN\tx\nq1\tNN\tx|y\n",
            r"training\.tagged:3: 2 values in targetCanon, 1 in targetValue",
        ),
    ],
)
def test_bad_tagged_files_are_named(write: Write, tmp_path: Path, text: str, said: str) -> None:
    write("csv/1.csv", '"a"\n"b"\n')
    tsv = write("data/training.tsv", HEAD + "q1\twho?\tcsv/1.csv\tx\n")
    write("tagged/data/training.tagged", text)
    with pytest.raises(InputError, match=said):
        read_tables(tmp_path, tsv, Tally(), tsv.name)


@pytest.mark.parametrize("empty", ["a,b\n", "a,b", "a;b\r\n\r\n", '"a","b"\n\n\n', "", "\n\n"], ids=repr)
def test_a_table_without_rows_is_dropped_with_its_questions(write: Write, tmp_path: Path, empty: str) -> None:
    write("csv/1.csv", "City,Size\nOslo,7\n")
    write("csv/2.csv", empty)
    rows = "q1\tlargest?\tcsv/1.csv\tOslo\nq2\twho?\tcsv/2.csv\tx\nq3\twhat?\tcsv/2.csv\ty\n"
    tsv, tally = write("data/training.tsv", HEAD + rows), Tally()
    tables, questions = read_tables(tmp_path, tsv, tally, tsv.name)
    assert list(tables) == ["csv/1.csv"] and [question.id for question in questions] == ["q1"]
    assert +tally.dropped == {"table_without_rows": 1, "question_of_table_without_rows": 2}


def test_folder_of_tables_may_be_named_from_elsewhere(tables_folder: Path) -> None:
    root = tables_folder / "csv" / ".."
    tables, questions = read_tables(root, root / "data" / "training.tsv", Tally(), "training.tsv")
    assert (len(tables), len(questions)) == (12, 24)


def files(*paths: Path) -> list[SourceFile]:
    return [SourceFile(path, path.name) for path in paths]


def test_jsonl_and_parquet_read_the_same(write: Write, tmp_path: Path) -> None:
    rows = [{"id": "1", "title": "T", "text": " a\n b "}, {"id": "2", "title": "", "text": "c"}]
    lines = write("d.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    one = read_documents(files(lines), Tally())
    two = read_documents(files(tmp_path / "d.parquet"), Tally())
    assert [(d.id, d.title, d.text, d.row) for d in one.values()] == [
        ("1", "T", " a\n b", 1),
        ("2", "", "c", 2),
    ]
    assert [(d.id, d.title, d.text, d.row) for d in two.values()] == [
        ("1", "T", " a\n b", 1),
        ("2", "", "c", 2),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"d\.jsonl: no documents"),
        ('{"id": "1"}\n', r"d\.jsonl:1: field text is missing"),
        ('{"id": "1", "text": " "}\n', r"d\.jsonl:1: document '1' has no text"),
        ('{"id": "1", "text": null}\n{"id": "2", "text": ""}\n', r"d\.jsonl:1: document '1' has no text"),
        ('{"id": "1", "text": {}}\n', r"d\.jsonl:1: field text is empty or no text \(dict\)"),
        ('{"id": "0", "text": null}\n{"id": "1"}\n', r"d\.jsonl:2: field text is missing"),
        ('{"id": [], "text": "x"}\n', r"d\.jsonl:1: field id is empty or no text \(list\)"),
        ('\n{"id": "1", "text": "x"\n', r"d\.jsonl:2: broken JSON"),
        (2 * '{"id": 1, "text": "x"}\n', r"d\.jsonl:2: document id '1' is already used at d\.jsonl:1"),
    ],
)
def test_bad_documents_are_named(write: Write, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_documents(files(write("d.jsonl", text)), Tally())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"document_id": "9"}, r"q\.jsonl:1: question 'q' names document '9', which does not exist"),
        ({"answers": {"text": "x"}}, r"q\.jsonl:1: field answers"),
        ({"answers": ["x", ["y"]]}, r"q\.jsonl:1: field answers"),
        ({"question": None}, r"q\.jsonl:1: field question is missing"),
    ],
)
def test_bad_questions_are_named(write: Write, row: dict[str, object], said: str) -> None:
    documents = read_documents(files(write("d.jsonl", '{"id": "1", "text": "x"}\n')), Tally())
    good = {"id": "q", "document_id": "1", "question": "?", "answers": ["a"]}
    path = write("q.jsonl", json.dumps(good | row) + "\n")
    with pytest.raises(InputError, match=said):
        read_questions(files(path), documents, Tally())


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as the kind of file that the name says; a row in CSV lacks its last cells if they are null."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
        path.write_text("\n".join(",".join(row) for row in [list(rows[0]), *cells]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize("abstain", [False, True])
def test_documents_without_text_are_counted_with_their_questions(
    ending: str, abstain: bool, tmp_path: Path
) -> None:
    texts = [
        "Lamp 0 costs 7 euro.",
        "",
        None,
        "  ",
        *(f"Lamp {i} costs {i + 10} euro." for i in range(4, 10)),
    ]
    rows: list[dict[str, object]] = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    source = write_rows(tmp_path / f"docs{ending}", rows)
    asked: list[dict[str, object]] = [
        {
            "id": f"q{i}",
            "document_id": f"d{i}",
            "question": f"What does lamp {i} cost?",
            "answers": ["7 euro"],
        }
        for i in range(10)
    ]
    asked.append(asked[0] | {"id": "two", "document_id": ["d0", "d2"]})
    asked.append(asked[1] | {"id": "none", "answers": []})
    questions = write_rows(tmp_path / "questions.jsonl", asked)
    columns = {"columns": {"id": "id", "text": "text"}} if ending == ".csv" else {}
    task = QaTask.model_validate(
        {"source": str(source), "questions": str(questions), "legs": ["bm25"], "abstain": abstain} | columns
    )
    built = build_record_files(
        ContextConfig(near_duplicates="off", test_share=0.3, qa=task), tmp_path / "out"
    )
    counts = json.loads((tmp_path / "out" / "metrics.json").read_text())["tasks"]["qa"]
    assert built
    assert counts["read"]["documents"] == 10 and counts["read"]["questions"] == 12
    assert counts["dropped"]["document_without_text"] == 3
    # An unanswerable question has that reason, unless it is wanted.
    assert counts["dropped"]["question_of_document_without_text"] == (5 if abstain else 4)
    assert counts["dropped"].get("question_unanswerable", 0) == (0 if abstain else 1)
    records = {row["id"] for row in read_records(tmp_path / "out" / "records.parquet")}
    assert records == {f"qa:q{i}" for i in (0, *range(4, 10))}


def test_the_questions_of_a_file_that_cannot_be_read_are_counted(write: Write, tmp_path: Path) -> None:
    """Whatever the reason is, the questions about a dropped document do not end the build."""
    write("docs/lamp.md", "The lamp costs 7 euro.")
    write("docs/scan.pdf", "no pdf at all")
    write("docs/empty.txt", "")
    tally, left_out = Tally(), dict[str, str]()
    found = document_files(QaTask(source=str(tmp_path / "docs")))
    documents = {one.id: one for one in stream_documents(found, tally, left_out=left_out)}
    names = ("lamp.md", "scan.pdf", "empty.txt")
    rows = [{"id": n, "document_id": n, "question": "?", "answers": ["7 euro"]} for n in names]
    path = write("q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [q.id for q in stream_questions(files(path), documents, tally, left_out=left_out)] == ["lamp.md"]
    assert {why: count for why, count in tally.dropped.items() if why.startswith("question")} == {
        "question_of_document_not_a_pdf": 1,
        "question_of_document_without_text": 1,
    }
    left_out.clear()
    with pytest.raises(InputError, match=r"q\.jsonl:2: question 'scan\.pdf' names document 'scan\.pdf'"):
        list(stream_questions(files(path), documents, tally, left_out=left_out))


def test_a_later_document_may_have_the_id_of_one_without_text(write: Write) -> None:
    path = write("d.jsonl", '{"id": "1", "text": ""}\n{"id": "1", "text": "x"}\n')
    asked = write("q.jsonl", '{"id": "q", "document_id": "1", "question": "?", "answers": "a"}\n')
    tally, left_out = Tally(), dict[str, str]()
    documents = {one.id: one for one in stream_documents(files(path), tally, left_out=left_out)}
    assert [q.id for q in stream_questions(files(asked), documents, tally, left_out=left_out)] == ["q"]
    assert tally.dropped == {"document_without_text": 1}


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())], ids=str
)
@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_columns_of_bytes_are_read_as_text(kind: pa.DataType, ending: str, tmp_path: Path) -> None:
    texts = ["Ünter den Linden", "第二", "", None]
    cells = pa.array([text and text.encode() for text in texts], pa.binary()).cast(
        kind.value_type if pa.types.is_dictionary(kind) else kind
    )
    cells = cells.dictionary_encode() if pa.types.is_dictionary(kind) else cells
    names = pa.array([f"d{i}".encode() for i in range(4)])
    table = pa.table({"id": names, "text": cells})
    path = tmp_path / f"d{ending}"
    if ending == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    tally = Tally()
    found = read_documents(files(path), tally, "documents")
    assert {key: document.text for key, document in found.items()} == {"d0": texts[0], "d1": texts[1]}
    assert tally.dropped == {"document_without_text": 2}


def test_lists_of_bytes_are_answers_and_other_bytes_are_named(tmp_path: Path) -> None:
    row: dict[str, object] = {
        "id": b"q",
        "document_id": b"1",
        "question": b"?",
        "answers": [b"a", b"\xc3\xa4"],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "q.parquet")
    (question,) = read_questions(files(tmp_path / "q.parquet"), {"1"}, Tally())
    assert (question.id, question.text, question.answers) == ("q", "?", ("a", "ä"))
    rows = [{"id": "1", "text": b"x"}, {"id": "2", "text": "für".encode("latin-1")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet:2: field text is empty or no text \(bytes\)"):
        read_documents(files(tmp_path / "d.parquet"), Tally())


def test_parquet_without_a_needed_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "body": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet: column text is missing; the file has id, body"):
        read_documents(files(tmp_path / "d.parquet"), Tally())
    (tmp_path / "n.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"n\.parquet: not a readable Parquet file"):
        read_documents(files(tmp_path / "n.parquet"), Tally())


@settings(max_examples=200, database=None, deadline=None)
@given(st.text(st.sampled_from('ab,;\t|"\\\n '), max_size=40))
@example('a;b\n"1";2\n')
@example("a,b\n1,2\n3\n")
@example('a,"b\\"c"\nd,e\n')
def test_a_table_parsed_once_equals_the_one_whose_separator_was_found_first(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(text, newline="")
        separator = find_separator(line.rstrip("\n") for line in io.StringIO(text, newline=None))
        try:
            found = read_csv(path)
        except InputError as error:
            assert str(path) in str(error)
            return
        assert found[1] == separator
        try:
            strict = [
                row for row in csv.reader(io.StringIO(text, ""), delimiter=separator, strict=True) if row
            ]
        except csv.Error:
            return  # the escapes of WikiTableQuestions, or quotes of no rule: no fast path
        assert found[0] == strict
