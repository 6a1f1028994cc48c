"""What people can export: variants that the page of formats does not show, and rules for all formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.threads.registry import read_threads, thread_format
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.threads.store import store_threads

Write = Callable[[str, str], Path]


def read(path: Path, **fields: Any) -> tuple[list[Thread], Tally]:
    tally = Tally()
    return list(read_threads(ThreadsTask(source=str(path), **fields), tally)), tally


def links(threads: list[Thread]) -> dict[str, tuple[str, ...]]:
    return {post.id: post.parents for thread in threads for post in thread.posts}


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_telegram_of_a_whole_account(write: Write) -> None:
    chats = [
        {
            "name": name,
            "id": number,
            "messages": [
                {"id": 1, "type": "service", "action": "join"},
                {
                    "id": 2,
                    "type": "message",
                    "from": None,
                    "from_id": "user9",
                    "text": ["a ", {"text": name}],
                },
                {"id": 3, "type": "message", "from": "Bob", "text": "b", "reply_to_message_id": 2},
                {"id": 4, "type": "message", "from": "Bob", "text": "c", "reply_to_message_id": 1},
                {"id": 5, "type": "message", "from": "Bob", "text": "d", "reply_to_message_id": 77},
            ],
        }
        for number, name in ((8, "x"), (9, "y"))
    ]
    threads, tally = read(
        write("result.json", json.dumps({"about": "", "chats": {"about": "", "list": chats}}))
    )
    assert [thread.id for thread in threads] == ["8", "9"]
    assert [(post.author, post.text) for post in threads[1].posts[:2]] == [("user9", "a y"), ("Bob", "b")]
    assert threads[0].posts[1].parents == ("8/2",)
    assert +tally.dropped == {"post_of_the_system": 2, "link_to_dropped_post": 2, "link_to_missing_post": 2}


def test_a_page_of_reddit(write: Write) -> None:
    def comment(key: str, parent: str, replies: Any = "") -> dict[str, Any]:
        data = {
            "id": key,
            "parent_id": parent,
            "link_id": "t3_s",
            "author": key,
            "body": key,
            "replies": replies,
        }
        return {"kind": "t1", "data": data}

    more = {"kind": "more", "data": {"id": "m", "children": ["x"]}}
    inner = {"kind": "Listing", "data": {"children": [comment("b", "t1_a"), more]}}
    page = [
        {
            "kind": "Listing",
            "data": {"children": [{"kind": "t3", "data": {"id": "s", "title": "T", "author": "o"}}]},
        },
        {"kind": "Listing", "data": {"children": [comment("a", "t3_s", inner)]}},
    ]
    threads, tally = read(write("abc.json", json.dumps(page)))
    assert links(threads) == {"t3_s": (), "t1_a": ("t3_s",), "t1_b": ("t1_a",)}
    assert +tally.dropped == {"post_not_loaded": 1}


def test_hacker_news_of_algolia(write: Write) -> None:
    comment = {"id": 2, "author": "b", "text": "<p>x", "parent_id": 1, "children": [], "created_at_i": 6}
    story = {"id": 1, "author": "a", "title": "T", "points": 1, "children": [comment], "created_at_i": 5}
    assert links(read(write("item.json", json.dumps(story)))[0]) == {"1": (), "2": ("1",)}
    hits = [
        {"objectID": "2", "comment_text": "x", "parent_id": 1, "story_id": 1},
        {"objectID": "1", "title": "T"},
    ]
    assert links(read(write("hits.json", json.dumps({"hits": hits})))[0]) == {"1": (), "2": ("1",)}
    rows = [{"id": 1, "by": "a", "dead": True}, {"id": 2, "by": "b", "text": "x", "parent": 1}]
    assert read(write("dead.jsonl", lines(*rows)))[1].as_dict()["dropped"] == {
        "post_deleted": 1,
        "link_to_dropped_post": 1,
    }


def test_stack_exchange_with_people_and_comments(write: Write) -> None:
    write("Users.xml", '<users><row Id="5" DisplayName="Ann" /></users>')
    write("Comments.xml", '<comments><row Id="2" PostId="2" Text="thanks" UserId="5" /></comments>')
    write("Tags.xml", "<tags></tags>")
    posts = '<posts><row Id="1" PostTypeId="1" Title="Q" OwnerUserId="5" />'
    posts += '<row Id="2" PostTypeId="2" ParentId="1" />'
    path = write("Posts.xml", posts + '<row Id="3" PostTypeId="5" /></posts>')
    threads, tally = read(path.parent)
    assert links(threads) == {"1": (), "2": ("1",), "c2": ("2",)}
    assert [post.author for post in threads[0].posts] == ["Ann", "Anonymous", "Ann"]
    assert +tally.dropped == {"post_of_the_system": 1}
    path.write_text(posts)
    with pytest.raises(InputError, match=r"Posts\.xml:1: broken XML"):
        read(path.parent)


def test_mail_with_references_charsets_and_damage(write: Write, tmp_path: Path) -> None:
    mails = [
        "From a at x.org  Wed May  1 00:00:00 2024\nFrom: =?utf-8?q?J=C3=BCrgen?= <a@x.org>\n"
        "Message-ID: <1@x>\nSubject: [l] Lamps\nContent-Type: text/plain; charset=iso-8859-1\n\n"
        "Sch\xf6n?\n\n",
        "From b at x.org  Wed May  1 00:01:00 2024\nFrom: b at x.org (Bob)\nMessage-ID: <2@x>\n"
        "References: <0@x> <1@x>\nDate: no date\nContent-Type: text/html; charset=klingon\n\n"
        "<p>Very <b>nice</b></p>\n\n",
        "From c at x.org  Wed May  1 00:02:00 2024\nIn-Reply-To: <1@x>\n\n"
        "On Wed, J wrote:\n> Sch\xf6n?\nyes\n>From here\n",
    ]
    path = tmp_path / "2024-May.txt"
    path.write_bytes("".join(mails).encode("latin-1"))
    (thread,), _ = read(path, format="mbox")
    assert [(post.author, post.text) for post in thread.posts] == [
        ("Jürgen", "Lamps. Schön?"),
        ("Bob", "Very nice"),
        ("Anonymous", "yes From here"),
    ]
    assert [post.parents for post in thread.posts] == [(), ("1@x",), ("1@x",)]
    with pytest.raises(InputError, match="no mbox file"):
        read(write("x.mbox", "hello\n"))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("html", "<p>Red.</p><blockquote><p>Which one?</p></blockquote>"),
        (
            "html",
            '<div>Red.</div><div class="gmail_quote"><div class="gmail_attr">Ann wrote:</div>Which one?',
        ),
        ("html", '<p>Red.</p><div class="moz-cite-prefix">A schrieb:</div><blockquote>Which one?'),
        ("html", '<p>Red.</p><hr><div id="divRplyFwdMsg"><b>From:</b> Ann</div><div>Which one?</div>'),
        ("plain", "Red.\n\n-----Original Message-----\nFrom: Ann\nSent: Wed\n\nWhich one?\n"),
        ("plain", "Red.\n\n________________________________\nVon: Ann\nGesendet: Mi\n\nWhich one?\n"),
        ("plain", "Red.\n\nFrom: Ann <a@x.org>\nSent: Wednesday\nTo: Bob\n\nWhich one?\n"),
    ],
)
def test_what_a_mail_answers_is_not_in_its_text(write: Write, kind: str, body: str) -> None:
    start = "From a@x.org Wed May  1 00:00:00 2024\n"
    first = f"{start}From: Ann <a@x.org>\nMessage-ID: <1@x>\n\nWhich one?\n\n"
    answer = f"{start}From: Bob <b@x.org>\nIn-Reply-To: <1@x>\nContent-Type: text/{kind}\n\n{body}\n"
    (thread,), _ = read(write("list.mbox", first + answer))
    assert [post.text for post in thread.posts] == ["Which one?", "Red."]
    # What answers nothing keeps what it quotes.
    (thread,), _ = read(write("alone.mbox", answer.replace("In-Reply-To: <1@x>\n", "")))
    assert "Which one?" in thread.posts[0].text


def test_quotations_in_answers_of_sites_and_servers(write: Write) -> None:
    body = "&lt;blockquote&gt;Which one?&lt;/blockquote&gt;&lt;p&gt;Red.&lt;/p&gt;"
    posts = f'<posts><row Id="1" PostTypeId="1" Body="{body}" />'
    posts += f'<row Id="2" PostTypeId="2" ParentId="1" Body="{body}" /></posts>'
    (thread,), _ = read(write("Posts.xml", posts))
    assert [post.text for post in thread.posts] == ["Which one? Red.", "Red."]
    html = "<blockquote>Which one?</blockquote><p>Red.</p>"
    notes = [
        {"id": "1", "type": "Note", "published": "2024-05-01", "attributedTo": "a", "content": html},
        {"id": "2", "type": "Note", "published": "2024-05-02", "attributedTo": "b", "content": html}
        | {"inReplyTo": "1"},
    ]
    (thread,), _ = read(write("notes.jsonl", lines(*notes)), format="activitypub")
    assert [post.text for post in thread.posts] == ["Which one? Red.", "Red."]
    statuses = [
        {"id": "1", "created_at": "2024-05-01", "account": {"acct": "a"}, "content": html},
        {"id": "2", "created_at": "2024-05-02", "account": {"acct": "b"}, "content": html}
        | {"in_reply_to_id": "1"},
    ]
    (thread,), _ = read(write("statuses.jsonl", lines(*statuses)), format="mastodon")
    assert [post.text for post in thread.posts] == ["Which one? Red.", "Red."]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", '"AuthorID","Author","Date","Content","Attachments"\n', "DiscordChatExporter.*-f Json"),
        ("a.html", '<html><body><div class="chatlog__message">', "DiscordChatExporter.*-f Json"),
        ("a.txt", "=====\nGuild: G\nChannel: c\n=====\n", "DiscordChatExporter.*-f Json"),
        ("a.html", '<html><title>Exported Data</title><div class="page_wrap">', r"Telegram.*result\.json"),
        ("a.txt", "[01.05.24, 10:00:00] Ann: hi\n[01.05.24, 10:01:00] Bob: yo\n", "WhatsApp"),
        ("a.txt", "5/1/24, 10:00 PM - Ann: hi\n", "WhatsApp"),
        ("a.json", '{"participants": [], "messages": [{"sender_name": "Ann"}]}', "Facebook"),
        ("a.db", "SQLite format 3\0", "database"),
    ],
)
def test_formats_without_a_reader_are_named(write: Write, name: str, text: str, said: str) -> None:
    path = write(name, text)
    for source in (path, path.parent):
        with pytest.raises(InputError, match=said) as caught:
            read(source)
        assert "\n" not in str(caught.value)


def status(
    key: str, to: str | None, who: str, text: str, time: str = "2024-05-01T00:00:00Z"
) -> dict[str, Any]:
    return {"id": key, "in_reply_to_id": to, "content": text, "account": {"acct": who}, "created_at": time}


def test_two_servers_with_equal_ids_are_both_kept(write: Write) -> None:
    write("one/s.jsonl", lines(status("1", None, "ann", "lamp?"), status("2", "1", "bob", "the red lamp")))
    path = write(
        "two/s.jsonl", lines(status("1", None, "cid", "kettle?"), status("2", "1", "dan", "it is fine"))
    )
    threads, tally = read(path.parents[1])
    assert [[post.text for post in thread.posts] for thread in threads] == [
        ["lamp?", "the red lamp"],
        ["kettle?", "it is fine"],
    ]
    assert links(threads)["two/s.jsonl/2"] == ("two/s.jsonl/1",)
    assert tally.read["sources_whose_ids_were_made_distinct"] == 1


def test_dumps_that_overlap_are_one_conversation(write: Write) -> None:
    rows = [status(str(i), str(i - 1) if i > 1 else None, "ann", f"text {i}") for i in range(1, 6)]
    write("d/1.jsonl", lines(*rows[:4]))
    edited = {**rows[3], "content": "text 4, edited"}
    path = write("d/2.jsonl", lines(rows[1], rows[2], edited, rows[4]))
    (thread,), tally = read(path.parent)
    assert [post.text for post in thread.posts] == [f"text {i}" for i in range(1, 6)]
    assert +tally.dropped == {"post_twice": 3} and not tally.read["sources_whose_ids_were_made_distinct"]


@pytest.mark.parametrize("missing", ["None", "null", "", "nan", float("nan"), None])
def test_missing_values_in_any_spelling(write: Write, missing: Any) -> None:
    row = {
        "id": 1,
        "conversation_id": 7.0,
        "text": 5,
        "speaker": missing,
        "reply-to": missing,
        "timestamp": missing,
    }
    (thread,), tally = read(write("utterances.jsonl", lines(row)))
    assert (thread.id, thread.posts[0].text, thread.posts[0].author) == ("7", "5", "Anonymous")
    assert +tally.dropped == {}


def test_chats_drop_what_corpora_refuse(write: Write) -> None:
    reply = status("2", "1", "ann", "x")
    assert read(write("s.jsonl", lines(reply)))[1].as_dict()["dropped"] == {"link_to_missing_post": 1}
    with pytest.raises(InputError, match=r"set threads\.missing_parents to drop"):
        read(write("s.jsonl", lines(reply)), missing_parents="error")


def test_any_format_is_cut_into_blocks(write: Write) -> None:
    rows = [status(str(i), str(i - 1) if i > 1 else None, "ann", f"text {i}") for i in range(1, 11)]
    threads, tally = read(write("s.jsonl", lines(*rows)), block=4)
    assert [len(thread.posts) for thread in threads] == [4, 4, 2]
    assert +tally.dropped == {"link_to_other_block": 2}


def test_what_a_screen_does_not_show_is_removed(write: Write) -> None:
    text = "a\x00b \x1b[31mred\x1b[0m z\u200bero \x0304,01colour\x03 \u202eflip joi\u200dner"
    (thread,), _ = read(write("s.jsonl", lines(status("1", None, "a\u200bnn", text))))
    assert (thread.posts[0].author, thread.posts[0].text) == ("ann", "ab red zero colour flip joi\u200dner")


def test_boards_with_equal_numbers_stay_apart_and_crawls_are_one(write: Write, tmp_path: Path) -> None:
    def board(*texts: str) -> str:
        return json.dumps(
            {"posts": [{"no": i, "resto": min(i - 1, 1), "com": text} for i, text in enumerate(texts, 1)]}
        )

    write("b/cooking.ndjson", board("which pan?", "iron") + "\n")
    write("b/cooking-later.ndjson", board("which pan?", "iron", "steel") + "\n")
    path = write("b/travel.ndjson", board("is it slow?", "yes") + "\n" + board("other", "thing") + "\n")
    config = ContextConfig(threads=ThreadsTask(source=str(path.parent), format="4chan"))
    tally = Tally()
    assert config.threads is not None
    store = store_threads(config, config.threads, tmp_path / "out", tally, lambda *_: None)
    ids = [store.rows.value("id", number) for number in range(len(store.rows))]
    assert ids == ["1", "travel.ndjson/1", "travel.ndjson:2/1"]
    assert tally.dropped["thread_twice"] == 1 and tally.read["threads_with_the_id_of_another"] == 2


def test_names_are_told_apart_by_tripcodes(write: Write) -> None:
    posts = [
        {"no": 1, "name": "Ann", "trip": "!a", "com": "x"},
        {"no": 2, "name": "Ann", "trip": "!b", "com": "y"},
        {"no": 3, "name": "Bob", "trip": "!c", "com": "z"},
        {"no": 4, "name": "Anonymous", "trip": "!d", "com": "z"},
    ]
    (thread,), _ = read(write("t.ndjson", json.dumps({"posts": posts}) + "\n"))
    assert [post.author for post in thread.posts] == ["Ann !a", "Ann !b", "Bob", "!d"]


def test_the_format_is_told_by_the_first_file_of_messages(write: Write) -> None:
    outbox = {"@context": "x", "type": "OrderedCollection", "orderedItems": []}
    path = write("a/outbox.json", json.dumps(outbox))
    write("a/actor.json", json.dumps({"@context": "x", "type": "Person", "id": "y"}))
    assert thread_format(ThreadsTask(source=str(path.parent))) == "activitypub"
    discord = {"guild": {}, "channel": {"id": "5", "name": "n", "type": "t"}, "messages": []}
    assert thread_format(ThreadsTask(source=str(write("d.json", json.dumps(discord))))) == "discord"


def test_a_file_that_tells_nothing_hides_no_format(write: Write) -> None:
    write("d/0.json", "")
    write("d/1.json", "[]")
    path = write("d/2.json", json.dumps([status("1", None, "ann", "x")]))
    assert thread_format(ThreadsTask(source=str(path.parent))) == "mastodon"
    with pytest.raises(InputError, match=r"0\.json:1: broken JSON.*the file is empty"):
        read(path.parent)
