"""Exports and data sets as others print them: the forms that only real files have, in own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrieval.corpus.types import Document, Question, Tally, Thread
from retrieval.readers.preview import preview
from retrieval.readers.threads.registry import read_threads, thread_format
from retrieval.settings.tasks import QaTask, ThreadsTask
from retrieval.tasks.qa.inputs import document_files, question_files
from tests.retrieval.read_all import read_documents, read_questions


def conversations(path: Path) -> tuple[str, list[Thread], Tally]:
    task, tally = ThreadsTask(source=str(path)), Tally()
    return thread_format(task), list(read_threads(task, tally)), tally


def asked(path: Path) -> tuple[dict[str, Document], list[Question], Tally]:
    task, tally = QaTask(source=str(path)), Tally()
    documents = read_documents(document_files(task), tally)
    return documents, read_questions(question_files(task), documents, tally), tally


def note(number: int, parent: str | None) -> dict[str, Any]:
    key = f"https://x.org/users/ann/statuses/{number}"
    inner = {"id": key, "type": "Note", "inReplyTo": parent, "published": "2022-11-08T03:07:14Z"}
    inner |= {"attributedTo": "https://x.org/users/ann", "content": f"<p>Note {number}.</p>"}
    return {"id": f"{key}/activity", "type": "Create", "actor": "https://x.org/users/ann", "object": inner}


def test_an_archive_that_names_its_list_twice(tmp_path: Path) -> None:
    """Mastodon's archives of 2024 begin with an empty list of the same name."""
    items = json.dumps([note(1, None), note(2, "https://x.org/users/ann/statuses/1")])
    (tmp_path / "outbox.json").write_text(
        '{"@context":["https://www.w3.org/ns/activitystreams",{"toot":"http://joinmastodon.org/ns#"}],'
        '"id":"outbox.json","type":"OrderedCollection","totalItems":2,"orderedItems":[],"orderedItems":'
        + items
        + "}"
    )
    (tmp_path / "likes.json").write_text(json.dumps({"type": "OrderedCollection", "orderedItems": []}))
    format, (thread,), tally = conversations(tmp_path)
    assert format == "activitypub" and [post.text for post in thread.posts] == ["Note 1.", "Note 2."]
    assert thread.posts[1].parents == (thread.posts[0].id,) and tally.read["posts"] == 2


def test_telegrams_chats_that_were_left_are_read_too(tmp_path: Path) -> None:
    def chat(number: int) -> dict[str, Any]:
        def message(key: int, **more: Any) -> dict[str, Any]:
            date = {"date": "2024-01-01T10:00:00", "date_unixtime": str(1704103200 + key)}
            return {
                "id": key,
                "type": "message",
                **date,
                "from": "Ann",
                "from_id": "user1",
                "text": "x",
                **more,
            }

        messages = [message(1), message(2, reply_to_message_id=1)]
        return {"name": f"chat {number}", "type": "personal_chat", "id": number, "messages": messages}

    export = {"about": "", "personal_information": {"user_id": 1}, "contacts": {"list": []}}
    export |= {"chats": {"about": "", "list": [chat(1)]}, "left_chats": {"about": "", "list": [chat(2)]}}
    (tmp_path / "result.json").write_text(json.dumps(export, indent=1))
    _, threads, tally = conversations(tmp_path)
    assert len(threads) == 2 and tally.read["posts"] == 4


def test_hacker_news_items_one_a_file_and_one_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(
        '{\n  "by" : "ann",\n  "id" : 1,\n  "time" : 5,\n  "title" : "Why?"\n}\n'
    )
    (tmp_path / "2.json").write_text(
        '{\n  "by" : "bob",\n  "id" : 2,\n  "parent" : 1,\n  "text" : "So."\n}\n'
    )
    (tmp_path / "3.json").write_text("null\n")
    format, (thread,), tally = conversations(tmp_path)
    assert format == "hackernews" and thread.posts[1].parents == ("1",)
    assert tally.dropped["post_deleted"] == 1 and tally.read["posts"] == 3


def test_reddit_comments_below_data(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"c{i}",
            "body": f"Comment {i}.",
            "author": "ann",
            "parent_id": f"t1_c{i - 1}" if i else "t3_s",
        }
        for i in range(3)
    ]
    (tmp_path / "comments.json").write_text(json.dumps({"data": rows, "error": None}))
    format, threads, tally = conversations(tmp_path)
    assert format == "reddit" and tally.read["posts"] == 3
    assert sum(len(thread.posts) for thread in threads) == 3
    assert "conversations in the format reddit" in preview(str(tmp_path))[0]


def test_a_shortened_discord_export_without_authors(tmp_path: Path) -> None:
    messages = [{"id": "1", "timestamp": "2026-01-01T00:00:00Z", "content": "first"}]
    export = {"guild": {"id": "2"}, "channel": {"id": "1", "name": "room"}, "messages": messages}
    (tmp_path / "room.json").write_text(json.dumps(export))
    _, (thread,), _ = conversations(tmp_path)
    assert (thread.posts[0].author, thread.posts[0].text) == ("Anonymous", "first")


def test_flat_squad_rows_below_data(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"s{i}",
            "question": "What does it cost?",
            "context": f"It costs {i} euro.",
            "answers": {"answer_start": [9] * 2 * (i > 0), "text": [f"{i} euro"] * 2 * (i > 0)},
        }
        for i in range(3)
    ]
    (tmp_path / "sample.json").write_text(json.dumps({"version": 2.0, "data": rows}, indent=4))
    documents, questions, tally = asked(tmp_path)
    assert [question.answers for question in questions] == [("1 euro",), ("2 euro",)]
    assert len(documents) == 3 and tally.dropped["question_unanswerable"] == 1
    assert "layout squad" in preview(str(tmp_path))[0]


def test_hotpotqa_of_the_hub_is_no_table(tmp_path: Path) -> None:
    row = {
        "id": "h1",
        "question": "Is Oslo north of Rome?",
        "answer": "yes",
        "supporting_facts": {"title": ["Oslo", "Rome"], "sent_id": [0, 0]},
        "context": {"title": ["Oslo", "Rome"], "sentences": [["Oslo lies at 60."], ["Rome lies at 42."]]},
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert "layout hotpotqa" in preview(str(tmp_path))[0]
    documents, (question,), _ = asked(tmp_path)
    assert [documents[name].title for name in question.oracle_ids] == ["Oslo", "Rome"]


@pytest.mark.parametrize(
    ("spoken", "answers"), [(-1, ("11 euro",)), (1, ("11 euro", "yes")), (0, ("11 euro", "no"))]
)
def test_natural_questions_of_the_hub(spoken: int, answers: tuple[str, ...], tmp_path: Path) -> None:
    tokens = ["<P>", "It", "costs", "11", "euro", ".", "</P>", "<Td a>", "Other", "text", "</Td>"]
    low, high = [0, 7], [7, 11]
    row = {
        "id": "n1",
        "document": {
            "title": "Lamp",
            "tokens": {"token": tokens, "is_html": [token.startswith("<") for token in tokens]},
        },
        "question": {"text": "what does it cost", "tokens": ["what"]},
        "long_answer_candidates": {"start_token": low, "end_token": high, "top_level": [True, True]},
        "annotations": {
            "id": ["a"],
            "long_answer": [{"candidate_index": 0, "start_token": 0, "end_token": 7}],
            "short_answers": [{"start_token": [3], "end_token": [5], "text": ["11 euro"]}],
            "yes_no_answer": [spoken],
        },
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    documents, (question,), _ = asked(tmp_path)
    assert [document.text for document in documents.values()] == ["It costs 11 euro .", "Other text"]
    assert question.answers == answers and documents[question.context_id].text.startswith("It costs")


def test_musique_without_an_answer(tmp_path: Path) -> None:
    paragraphs = [
        {"idx": i, "title": f"T{i}", "paragraph_text": f"Text {i}.", "is_supporting": i < 2} for i in range(3)
    ]
    common = {"answer": "Ann", "answer_aliases": [], "answerable": True}
    rows = [
        {"id": "2hop__1", "paragraphs": paragraphs, "question": "Who?", **common},
        {"id": "2hop__2", "paragraphs": paragraphs[2:], "question": "Why?", **common, "answerable": False},
        {"id": "2hop__3", "paragraphs": paragraphs[2:], "question": "How?", **common},
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, (question,), tally = asked(tmp_path)
    assert len(documents) == 3 and question.answers == ("Ann",) and len(question.oracle_ids) == 2
    assert (
        tally.dropped["question_unanswerable"] == 1 and tally.dropped["question_without_its_paragraphs"] == 1
    )


def test_wikisql_is_told_by_its_preview(tmp_path: Path) -> None:
    row = {"phase": 1, "table_id": "1-1", "question": "who?", "sql": {"sel": 0, "agg": 0, "conds": []}}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    table = {"id": "1-1", "header": ["Name"], "rows": [["Ann"]]}
    (tmp_path / "train.tables.jsonl").write_text(json.dumps(table) + "\n")
    lines = preview(str(tmp_path / "train.jsonl"))
    assert "WikiSQL" in lines[0] and lines[-1].strip() == f"source: {tmp_path / 'train.jsonl'}"


def test_rows_of_the_data_set_viewer(tmp_path: Path) -> None:
    rows = [{"row_idx": i, "row": {"question": f"Q{i}?", "answer": "a", "source": "d"}} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps({"features": [], "rows": rows, "truncated": False}))
    assert (
        "question_columns: {question: row.question, answers: row.answer, document_id: row.source}"
        in preview(str(tmp_path / "rows.json"))[-1]
    )
