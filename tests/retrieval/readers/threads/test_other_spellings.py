"""Links, ids and exports that differ from the page of formats: read, counted, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.threads.registry import read_threads, thread_format
from retrieval.settings.columns import ThreadColumns
from retrieval.settings.tasks import ThreadsTask

Write = Callable[[str, str], Path]
TIME = "2024-05-01T10:00:00Z"


def read(path: Path, **fields: Any) -> tuple[list[Thread], Tally]:
    tally = Tally()
    return list(read_threads(ThreadsTask(source=str(path), **fields), tally)), tally


def texts(threads: list[Thread]) -> list[list[str]]:
    return [[post.text for post in thread.posts] for thread in threads]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def exporter(key: int, kind: str, to: int | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": str(key), "type": kind, "content": f"text {key}", "timestamp": TIME}
    row["author"] = {"id": str(key), "name": f"u{key}"}
    return row | ({"reference": {"messageId": str(to), "channelId": "5"}} if to else {})


def discord(*messages: dict[str, Any]) -> str:
    return json.dumps({"guild": {}, "channel": {"id": "5", "name": "n"}, "messages": list(messages)})


def bot_api(key: int, kind: int, to: int | None = None) -> dict[str, Any]:
    row = {"id": str(key), "channel_id": "c", "type": kind, "timestamp": TIME, "content": f"text {key}"}
    row["author"] = {"id": "1", "username": "u"}
    return row | ({"message_reference": {"message_id": str(to)}} if to else {})


def slack(key: int, subtype: str = "", to: int | None = None) -> dict[str, Any]:
    row = {"type": "message", "user": f"U{key}", "ts": f"{key}.0", "text": f"text {key}"}
    return row | ({"subtype": subtype} if subtype else {}) | ({"thread_ts": f"{to}.0"} if to else {})


def telegram(*messages: dict[str, Any]) -> str:
    return json.dumps({"name": "n", "type": "private_supergroup", "id": 7, "messages": list(messages)})


def chat(key: int, to: int | None = None, **more: Any) -> dict[str, Any]:
    row = {"id": key, "type": "message", "from": f"u{key}", "text": f"text {key}", "date": TIME}
    return row | ({"reply_to_message_id": to} if to else {}) | more


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", discord(exporter(1, "GuildMemberJoin"), exporter(2, "Reply", 1), exporter(3, "Reply", 2))),
        (
            "a.json",
            discord(exporter(1, "ChannelPinnedMessage"), exporter(2, "Reply", 1), exporter(3, "Reply", 2)),
        ),
        ("a.jsonl", lines(bot_api(1, 7), bot_api(2, 19, 1), bot_api(3, 19, 2))),
        ("general/2024-05-01.json", json.dumps([slack(1, "channel_join"), slack(2, to=1), slack(3, to=2)])),
        ("result.json", telegram(chat(1, type="service", action="join"), chat(2, 1), chat(3, 2))),
    ],
    ids=["join", "pin", "bot-api", "slack", "telegram"],
)
def test_a_reply_to_a_message_of_the_system_loses_its_link_alone(write: Write, name: str, text: str) -> None:
    threads, tally = read(write(name, text))
    assert texts(threads) == [["text 2", "text 3"]]
    assert [len(post.parents) for post in threads[0].posts] == [0, 1]
    assert tally.dropped["post_of_the_system"] == 1
    assert sum(count for why, count in tally.dropped.items() if why.startswith("link_")) == 1
    assert tally.read["links"] == 2


def utterance(key: int, text: str, to: int | None) -> dict[str, Any]:
    return {"id": key, "conversation_id": 0, "reply-to": to, "speaker": text, "text": text, "timestamp": key}


def comment(key: int, text: str, to: int | None) -> dict[str, Any]:
    return {"id": key, "by": text, "text": text, "time": key} | (
        {"parent": to, "type": "comment"} if to is not None else {"type": "story", "title": text}
    )


def row(key: int, text: str, to: int | None) -> dict[str, Any]:
    return {"key": key, "who": text, "said": text, "to": to}


@pytest.mark.parametrize(
    ("make", "name", "fields"),
    [
        (utterance, "utterances.jsonl", {}),
        (comment, "items.jsonl", {"format": "hackernews"}),
        (row, "rows.jsonl", {"columns": ThreadColumns(id="key", text="said", parent="to", author="who")}),
    ],
    ids=["convokit", "hackernews", "mapping"],
)
def test_two_corpora_that_count_from_the_same_number_are_both_there(
    write: Write, make: Callable[..., dict[str, Any]], name: str, fields: dict[str, Any]
) -> None:
    write(f"all/one/{name}", lines(make(1, "lamp", None), make(2, "red lamp", 1)))
    path = write(f"all/two/{name}", lines(make(1, "kettle", None), make(2, "it is fine", 1)))
    threads, tally = read(path.parents[1], **fields)
    found = [text.split(". ")[-1] for each in texts(threads) for text in each]
    assert found == ["lamp", "red lamp", "kettle", "it is fine"]
    assert [len(post.parents) for thread in threads for post in thread.posts] == [0, 1, 0, 1]
    assert tally.read["posts"] == 4 and not tally.dropped["post_twice"]


@pytest.mark.parametrize(
    "numbers",
    [
        {"no": "100", "resto": "0"},
        {"no": " 100 ", "resto": ""},
        {"no": 100.0, "resto": 0.0},
        {"no": "100", "resto": None},
    ],
    ids=str,
)
def test_numbers_of_a_board_in_any_spelling(write: Write, numbers: dict[str, Any]) -> None:
    """Exports through CSV or a data frame leave numbers as texts or fractions."""
    reply = {"no": "101", "resto": "100", "com": '<a href="#p100" class="quotelink">&gt;&gt;100</a> yes'}
    (thread,), _ = read(write("t.ndjson", json.dumps({"posts": [numbers | {"com": "lamp?"}, reply]}) + "\n"))
    assert [(post.id, post.text, post.parents) for post in thread.posts] == [
        ("100", "lamp?", ()),
        ("101", "yes", ("100",)),
    ]


@pytest.mark.parametrize("number", ["x", "1e3", "-5", "1.5", True, [1], "", None])
def test_other_values_are_no_numbers_of_a_board(write: Write, number: Any) -> None:
    with pytest.raises(InputError, match=r"post 1 of the thread has no number|field \"no\"") as caught:
        read(write("t.ndjson", json.dumps({"posts": [{"no": number, "com": "x"}]}) + "\n"))
    assert "\n" not in str(caught.value)


def note(key: str, to: str | None = None, **more: Any) -> dict[str, Any]:
    about = {"id": key, "type": "Note", "content": f"<p>{key}</p>", "attributedTo": "https://x.org/users/ann"}
    return about | {"inReplyTo": to, "published": TIME} | more


def create(about: Any, kind: str = "Create") -> dict[str, Any]:
    return {"id": "act", "type": kind, "actor": "https://x.org/users/ann", "published": TIME, "object": about}


OUTBOX = {"@context": "https://www.w3.org/ns/activitystreams", "type": "OrderedCollection"}


@pytest.mark.parametrize(
    ("items", "found", "dropped"),
    [
        ([create(note("a")), create(note("b", "a"))], {"a": 0, "b": 1}, 0),
        ([create(note("b", "a")), create(note("a"))], {"a": 0, "b": 1}, 0),
        (
            [create(note("a")), create("https://y.org/1", "Announce"), create(note("b", "a"))],
            {"a": 0, "b": 1},
            1,
        ),
        ([create(note("a")), create(note("b", "https://y.org/notes/9"))], {"a": 0, "b": 0}, 1),
        ([note("a"), note("b", "a")], {"a": 0, "b": 1}, 0),
    ],
    ids=["as-written", "newest-first", "boost", "reply-elsewhere", "notes-alone"],
)
def test_outboxes_of_activitypub(
    write: Write, items: list[dict[str, Any]], found: dict[str, int], dropped: int
) -> None:
    text = json.dumps({**OUTBOX, "totalItems": len(items), "orderedItems": items})
    path = write("outbox.json", text)
    assert thread_format(ThreadsTask(source=str(path))) == "activitypub"
    threads, tally = read(path)
    assert {post.text: len(post.parents) for thread in threads for post in thread.posts} == found
    assert tally.dropped.total() == dropped
