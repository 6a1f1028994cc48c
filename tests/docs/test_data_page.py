"""docs/data.md: every example on the page is cut out and read by the reader that it is about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.configuration.load import load_config
from retrieval.build.build import build_record_files
from retrieval.build.record_files import read_records
from retrieval.corpus.types import Tally
from retrieval.readers.documents.instructions import read_triples
from retrieval.readers.tables import table_rows
from retrieval.readers.tables.mapped_tables import tables_and_questions, tables_with_questions
from retrieval.readers.tables.wikitables import read_tables
from retrieval.readers.threads.registry import read_threads, thread_format
from retrieval.settings.document_layouts import DOCUMENT_LAYOUTS
from retrieval.settings.tasks import QaTask, TablesTask, ThreadsTask
from retrieval.settings.thread_formats import THREAD_FORMATS
from retrieval.tasks.qa.inputs import document_files, question_files
from retrieval.tasks.qa.task import holds_instructions
from retrieval.tasks.tables.inputs import mapped_sources, table_files
from tests.retrieval.read_all import read_documents, read_questions

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"<!-- example: (\S+) (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The page's examples, each in the folder of its format."""
    for folder, name, text in EXAMPLE.findall(PAGE):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_every_marked_example_is_found(examples: Path) -> None:
    assert len(EXAMPLE.findall(PAGE)) == PAGE.count("<!-- example:") >= 13
    assert {path.name for path in examples.iterdir()} >= {"qa", "squad", "hotpotqa", "tables", "4chan", "irc"}


@pytest.mark.parametrize("kind", [*THREAD_FORMATS, "discord-api"])
def test_conversations(examples: Path, kind: str) -> None:
    tally = Tally()
    (mapping,) = re.findall(r"<!-- mapping: columns -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    columns = yaml.safe_load(mapping)["threads"]["columns"] if kind == "columns" else None
    task = ThreadsTask(source=str(examples / kind), columns=columns)
    assert thread_format(task) == kind.removesuffix("-api")
    (thread,) = read_threads(task, tally)
    first, second = thread.posts
    assert second.parents == (first.id,)
    assert first.text.endswith("Which one?") and second.text.endswith("he red one.")
    assert tally.read["posts"] == 2
    if kind != "irc":
        assert (first.time, second.time) == (1714521600.0, 1714521660.0)


def qa(task: QaTask) -> tuple[dict[str, Any], list[Any], Tally]:
    tally = Tally()
    documents = read_documents(document_files(task), tally)
    return documents, read_questions(question_files(task), documents, tally), tally


def test_documents_and_questions(examples: Path) -> None:
    source = str(examples / "qa" / "documents.jsonl")
    documents, questions, _ = qa(QaTask(source=source, questions=str(examples / "qa" / "questions.jsonl")))
    assert (documents["d1"].title, documents["d1"].time) == ("The lamp", 1714521600.0)
    assert questions[0].answers == ("40 watts", "a bulb of 40 watts")
    assert questions[1].oracle_ids == ("d1", "d2")


def test_documents_and_questions_by_columns(examples: Path) -> None:
    (mapping,) = re.findall(r"<!-- mapping: qa-columns -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    section = yaml.safe_load(mapping)["qa"]
    files = {name: str(examples / "qa-columns" / section[name]) for name in ("source", "questions")}
    documents, (question,), _ = qa(QaTask.model_validate(section | files))
    assert (documents["p1"].title, documents["p1"].text) == ("The lamp", "It takes a bulb of 40 watts.")
    assert (question.id, question.answers, question.context_id) == ("faq-1", ("40 watts",), "p1")


def test_squad(examples: Path) -> None:
    documents, (question,), tally = qa(QaTask(source=str(examples / "squad")))
    (document,) = documents.values()
    assert question.context_id == document.id and document.title == "Oslo"
    low, high = question.span
    assert document.text[low:high] == question.answers[0] == "the capital of Norway"
    assert tally.dropped == {"question_unanswerable": 1}


def test_hotpotqa(examples: Path) -> None:
    documents, (question,), _ = qa(QaTask(source=str(examples / "hotpotqa")))
    assert [documents[name].title for name in question.oracle_ids] == ["Oslo", "Rome"]
    assert len(documents) == 3 and question.needs_all


def test_raft(examples: Path) -> None:
    documents, (question,), _ = qa(QaTask(source=str(examples / "raft")))
    assert [document.text for document in documents.values()] == [
        "Rome is warm.",
        "Oslo is the capital of Norway.",
    ]
    assert documents[question.context_id].text == "Oslo is the capital of Norway."
    assert question.answers == ("the capital of Norway",)


def test_alpaca(examples: Path) -> None:
    task = QaTask(source=str(examples / "alpaca"))
    assert holds_instructions(task)
    assert [t.output for t in read_triples(document_files(task), Tally())] == ["Oslo", "bonjour"]


@pytest.mark.parametrize("kind", ["chat", "sharegpt", "prompts"])
def test_chats(examples: Path, kind: str) -> None:
    task = QaTask(source=str(examples / kind))
    assert holds_instructions(task)
    first, *rest = read_triples(document_files(task), Tally())
    assert (first.instruction, first.input, first.output) == ("Name the capital of Norway.", "", "Oslo")
    assert [(t.instruction, t.input, t.output) for t in rest] in (
        [],
        [("Translate.", "good morning", "bonjour")],
    )


@pytest.mark.parametrize("kind", ["dpr", "ms_marco", "natural_questions"])
def test_passages(examples: Path, kind: str) -> None:
    documents, (question,), tally = qa(QaTask(source=str(examples / kind)))
    assert question.answers == ("Oslo",) and documents[question.context_id].text.startswith(
        "Oslo is the capital"
    )
    assert tally.dropped["question_unanswerable"] == (kind == "ms_marco")


def test_beir(examples: Path) -> None:
    documents = read_documents(document_files(QaTask(source=str(examples / "beir"))), Tally())
    assert documents["d1"].title == "Oslo"


@pytest.mark.parametrize(("kind", "answers"), [("table-rows", ("Oslo", "Bergen")), ("wikisql", ("2",))])
def test_tables_within_rows(examples: Path, kind: str, answers: tuple[str, ...]) -> None:
    ((_, root, path),) = table_files(TablesTask(source=str(examples / kind)))
    _, (question,) = table_rows.read_tables(root, path, Tally(), path.name)
    assert question.answers == answers


@pytest.mark.parametrize(
    ("kind", "answers"), [("table-columns", [("Rome",), ("Oslo",)]), ("table-files", [("Rome",)])]
)
def test_tables_by_columns(examples: Path, kind: str, answers: list[tuple[str, ...]]) -> None:
    (mapping,) = re.findall(rf"<!-- mapping: {kind} -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    section = yaml.safe_load(mapping)["tables"]
    files = {
        name: str(examples / kind / section[name]) for name in ("source", "questions") if name in section
    }
    task = TablesTask.model_validate(section | files)
    (source,), asked, tally = mapped_sources(task), task.question_columns, Tally()
    assert asked is not None
    if task.questions is not None:
        tables, questions = tables_and_questions(source.files, None, source.questions, asked, tally, False)
    else:
        assert task.columns is not None
        tables, questions = tables_with_questions(source.files, task.columns, asked, tally, False)
    assert [question.answers for question in questions] == answers
    assert [table.rows for table in tables.values()] == [(("Oslo", "Norway"), ("Rome", "Italy"))]


def test_every_format_has_an_example(examples: Path) -> None:
    """Each registered format, layout and mapping is shown by an example, and each example belongs to one."""
    known = {*THREAD_FORMATS, *DOCUMENT_LAYOUTS} - {"documents"} | {"qa", "qa-columns", "discord-api"}
    known |= {"sharegpt", "prompts", "tables", "table-rows", "wikisql", "table-columns", "table-files"}
    assert {folder for folder, _, _ in EXAMPLE.findall(PAGE)} == known


def test_musique(examples: Path) -> None:
    documents, (question,), _ = qa(QaTask(source=str(examples / "musique")))
    assert [documents[name].title for name in question.oracle_ids] == ["Oslo", "Norway"]
    assert question.answers == ("Oslo", "Oslo, Norway") and len(documents) == 3


def test_tables(examples: Path) -> None:
    root = examples / "tables"
    tables, questions = read_tables(root, root / "data" / "training.tsv", Tally(), "training.tsv")
    assert tables["csv/1.csv"].rows[0] == ("Oslo", "Norway", 'the "Tiger City"')
    assert questions[0].answers == ("Oslo", "Bergen")


def ten_minutes(folder: Path) -> list[str]:
    """Make the files of the page's ten minutes by its own commands; return its later shell blocks."""
    part = PAGE[PAGE.index("## Your own data in ten minutes") : PAGE.index("## Your format is not here")]
    part = re.sub(r"^   ", "", part, flags=re.MULTILINE)
    first, second, *later = re.findall(r"```bash\n(.*?)```", part, re.DOTALL)
    subprocess.run(["bash", "-ec", first + second], cwd=folder, check=True)
    (config,) = re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)
    raw = yaml.safe_load(config)
    raw["model"]["path"] = str(ROOT / "data" / "tiny-llama")
    (folder / "mine" / "mine.yaml").write_text(yaml.safe_dump(raw))
    return later


def test_ten_minutes(tmp_path: Path) -> None:
    """The page's own commands make the files, and its configuration builds records from them."""
    ten_minutes(tmp_path)
    settings = load_config(tmp_path / "mine" / "mine.yaml")
    metrics = build_record_files(settings.context, tmp_path / "out")
    assert metrics["records"] == 3 and set(metrics["tasks"]["qa"]["records"]) == {"train", "test"}
    records = read_records(tmp_path / "out" / "records.parquet")
    lamp = next(record for record in records if record["id"] == "qa:q2")
    assert lamp["output"] == "40 watts" and lamp["context_id"] == "lamp.md"
    assert ". # The" not in records[0]["input"], "a title is not said twice"


def test_records_are_printed_as_the_page_says(tmp_path: Path) -> None:
    (script,) = ten_minutes(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in (("jora", "-m flows.cli"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "40 watts" in done.stdout and "Which bulb does it take?" in done.stdout


def test_the_page_names_every_format() -> None:
    known = {*THREAD_FORMATS, *DOCUMENT_LAYOUTS}
    known |= {"block", "missing_parents", "chunk_tokens", "chunk_overlap", "JORA_CACHE"}
    missing = [name for name in known if name.lower() not in PAGE.lower()]
    assert not missing
