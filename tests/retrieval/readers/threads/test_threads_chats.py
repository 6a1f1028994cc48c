"""ConvoKit, Discord and Mastodon: threads from messages in any order, with every reply resolved or
counted.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.threads.registry import read_threads, thread_format
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import ThreadsTask
from tests.retrieval.conftest import NAMES, TOPICS

Write = Callable[[str, str], Path]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path, **fields: Any) -> tuple[list[Thread], dict[str, dict[str, int]]]:
    tally = Tally()
    task = ThreadsTask(source=str(path), **{"missing_parents": "drop"} | fields)
    return list(read_threads(task, tally)), tally.as_dict()


def shape(thread: Thread) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(post.id, post.author, post.text, post.parents) for post in thread.posts]


def utterance(key: str, root: str, to: str | None, text: Any, **more: Any) -> dict[str, Any]:
    row = {"id": key, "conversation_id": root, "reply-to": to, "speaker": key.upper(), "text": text}
    return row | {"timestamp": None, "meta": {"score": 1}} | more


def test_convokit_puts_parents_first_where_no_clock_does(write: Write) -> None:
    rows = [  # Cornell's movie dialogues are written backwards
        utterance("c", "a", "b", "third"),
        utterance("x", "x", None, " another  talk "),
        utterance("b", "a", "a", "second"),
        utterance("a", "a", None, "first"),
        utterance("d", "x", "a", "into the other talk"),
        utterance("e", "a", "gone", "to nobody"),
        utterance("a", "a", None, "again"),
    ]
    path = write("corpus/utterances.jsonl", lines(rows))
    write("corpus/conversations.json", "{}")
    threads, counts = read(path.parent)
    assert [thread.id for thread in threads] == ["a", "x"]
    assert shape(threads[0]) == [
        ("a", "A", "first", ()),
        ("b", "B", "second", ("a",)),
        ("c", "C", "third", ("b",)),
        ("e", "E", "to nobody", ()),
    ]
    assert shape(threads[1]) == [("x", "X", "another talk", ()), ("d", "D", "into the other talk", ())]
    assert [post.row for post in threads[0].posts] == [4, 3, 1, 6]
    assert counts == {
        "read": {"files": 1, "links": 4, "posts": 7, "threads": 2},
        "dropped": {"link_to_missing_post": 1, "link_to_other_thread": 1, "post_twice": 1},
    }
    with pytest.raises(InputError, match=r"utterances\.jsonl:6: post e replies to post gone, which is not"):
        read(path, missing_parents="error")


def test_convokit_goes_by_time_and_knows_the_older_names(write: Write) -> None:
    rows = [
        {"id": "2", "root": "1", "user": "U", "text": "late", "reply_to": "1", "timestamp": "1325634200"},
        {"id": "1", "root": "1", "user": {"id": "V"}, "text": "early", "timestamp": 1325634100.5},
        {"id": "3", "root": "1", "user": None, "text": None, "reply_to": "1", "timestamp": 1325634150},
    ]
    (thread,), _ = read(write("utterances.jsonl", lines(rows)))
    assert [post.id for post in thread.posts] == ["1", "3", "2"]
    assert [post.author for post in thread.posts] == ["V", "Anonymous", "U"]
    assert (thread.time, thread.posts[2].time) == (1325634100.5, 1325634200.0)


def message(key: int, text: str, to: int | None = None, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"id": str(key), "type": "Default", "content": text}
    row["timestamp"] = f"2024-05-01T10:{key:02}:00.123+00:00"
    row["author"] = {"id": f"9{key}", "name": f"user{key}", "nickname": f"Nick {key}"}
    if to is not None:
        row |= {"type": "Reply", "reference": {"messageId": str(to), "channelId": "5", "guildId": "1"}}
    return row | more


def test_discord_exports(write: Write) -> None:
    export = {
        "guild": {"id": "1", "name": "G"},
        "channel": {"id": "5", "type": "GuildTextChat", "name": "general"},
        "messages": [
            message(1, "hello"),
            message(2, "Started a thread.", type="ThreadCreated"),
            message(3, "well **hello**", to=1),
            message(4, "to one who left", to=99),
            message(5, "look", reference={"messageId": "1", "type": "Forward"}),
        ],
        "messageCount": 5,
    }
    (thread,), counts = read(write("general.json", json.dumps(export, indent=2)))
    assert thread.id == "5"
    assert shape(thread) == [
        ("1", "Nick 1", "hello", ()),
        ("3", "Nick 3", "well **hello**", ("1",)),
        ("4", "Nick 4", "to one who left", ()),
        ("5", "Nick 5", "look", ()),
    ]
    assert thread.posts[0].time == 1714557660.123
    assert counts == {
        "read": {"files": 1, "links": 3, "posts": 5, "threads": 1},
        "dropped": {"link_is_a_forward": 1, "link_to_missing_post": 1, "post_of_the_system": 1},
    }


def api_message(key: int, text: str, to: int | None = None, **more: Any) -> dict[str, Any]:
    row = {"id": str(key), "channel_id": "c1", "type": 0, "timestamp": f"2024-05-01T10:{key:02}:00Z"}
    row |= {"content": text, "author": {"id": "7", "username": f"u{key}", "global_name": None}}
    return row | ({"type": 19, "message_reference": {"message_id": str(to)}} if to else {}) | more


def test_discord_api_lists_newest_first(write: Write) -> None:
    friend = {"id": "42", "username": "ann", "global_name": "Ann"}
    rows = [
        api_message(3, "<@42> see <:blob:123>", to=1, mentions=[friend]),
        api_message(2, "joined", type=7),
        api_message(1, "first"),
        api_message(1, "elsewhere", channel_id="c2", id="8"),
    ]
    as_list, counts = read(write("a.json", json.dumps(rows)))
    as_lines, _ = read(write("b.jsonl", lines(rows)))
    assert [shape(t) for t in as_list] == [shape(t) for t in as_lines]
    assert [t.id for t in as_list] == ["c1", "c2"]
    assert shape(as_list[0]) == [("1", "u1", "first", ()), ("3", "u3", "@Ann see :blob:", ("1",))]
    assert counts["dropped"] == {"post_of_the_system": 1}


def test_channels_are_cut_into_blocks(write: Write) -> None:
    rows = [api_message(i, f"text {i}", to=i - 1 if i > 1 else None) for i in range(1, 26)]
    threads, counts = read(write("a.jsonl", lines(rows)), block=10)
    assert [(t.id, len(t.posts)) for t in threads] == [("c1#1", 10), ("c1#2", 10), ("c1#3", 5)]
    assert threads[1].posts[0].parents == () and threads[1].posts[1].parents == ("11",)
    assert (counts["dropped"], counts["read"]["threads"]) == ({"link_to_other_block": 2}, 3)


def status(key: str, to: Any, html: str, **more: Any) -> dict[str, Any]:
    row = {"id": key, "created_at": f"2024-05-01T00:00:{len(key):02}Z", "in_reply_to_id": to, "content": html}
    return row | {"spoiler_text": "", "reblog": None, "account": {"acct": f"{key}@x.org"}} | more


STATUSES = [
    status("root", None, "<p>One<br>two</p><p>three &amp; four</p>", spoiler_text="Food"),
    status(
        "one",
        "root",
        '<p><span class="h-card"><a href="https://x.org/@root" class="u-url mention">@<span>root</span></a>'
        '</span> yes <a href="https://e.org"><span class="invisible">https://</span><span>e.org</span></a></p>',
    ),
    status("boost", None, "", reblog={"id": "far"}),
    status("two", "one", "<p>no</p>"),
    status("lost", "elsewhere", "<p>reply to another server</p>"),
    status("ring", "gnir", "<p>a</p>"),
    status("gnir", "ring", "<p>b</p>"),
]


def test_mastodon_threads_are_what_hangs_together(write: Write) -> None:
    shuffled = random.Random(3).sample(STATUSES, len(STATUSES))
    threads, counts = read(write("s.jsonl", lines(shuffled)))
    by_id = {thread.id: thread for thread in threads}
    assert sorted(by_id) == ["lost", "root"]
    assert shape(by_id["root"]) == [
        ("root", "root@x.org", "Food. One two three & four", ()),
        ("one", "one@x.org", "@root yes https://e.org", ("root",)),
        ("two", "two@x.org", "no", ("one",)),
    ]
    assert by_id["root"].time == 1714521604.0
    assert counts == {
        "read": {"files": 1, "links": 3, "posts": 7, "threads": 2},
        "dropped": {"link_to_missing_post": 1, "post_in_a_circle_of_replies": 2, "post_is_a_boost": 1},
    }


def test_mastodon_contexts_and_packed_files_read_the_same(write: Write, tmp_path: Path) -> None:
    context = {"ancestors": STATUSES[:1], "descendants": [STATUSES[1], STATUSES[3]]}
    whole, _ = read(write("context.json", json.dumps(context, indent=1)))
    text = lines([STATUSES[i] for i in (0, 1, 3)]).encode()
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "s.jsonl.zst").write_bytes(zstandard.compress(text))
    assert shape(whole[0]) == shape(read(tmp_path / "s.jsonl.gz")[0][0])
    assert shape(whole[0]) == shape(read(tmp_path / "s.jsonl.zst")[0][0])


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("utterances.jsonl", {"id": "a", "text": "x"}, r":1: field conversation_id \(or root\) is missing"),
        ("utterances.jsonl", {"conversation_id": "a"}, r":1: field id is missing"),
        ("utterances.jsonl", utterance("a", "a", None, [5]), r":1: field text is empty or no text \(list"),
        ("utterances.jsonl", utterance("a", "a", None, "x", timestamp="noon"), r":1: field timestamp is 'no"),
        ("m.jsonl", status("a", None, "x", account=None), r":1: field account is NoneType"),
        ("m.jsonl", status("a", [1], "x"), r":1: field in_reply_to_id is empty"),
        ("m.jsonl", {"descendants": [1]}, r":1: field descendants is not a list of statuses"),
        ("d.jsonl", api_message(1, "x", author="me"), r":1: field author is str"),
        ("d.jsonl", api_message(1, "x", type=[0]), r":1: field type is list"),
        ("d.json", {"messages": [message(1, "x"), 7]}, r"d\.json: item 2 \(line 1\): found int"),
        ("d.json", {"messages": {}, "b": 1}, r"d\.json:1: broken JSON at column \d+ \(no list messages"),
    ],
)
def test_bad_messages_are_named(write: Write, name: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(write(name, json.dumps(row) + "\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.ndjson", '{"posts": []}', "4chan"),
        ("a.json", '[{"channel_id": "1"}]', "discord"),
        ("a.json", '{"guild": {}, "messages": []}', "discord"),
        ("a.jsonl", '{"id": "1", "in_reply_to_id": null}', "mastodon"),
        ("a.jsonl", '{"id": "1", "root": "1"}', "convokit"),
        ("utterances.jsonl", "", "convokit"),
        ("a.ascii.txt", "", "irc"),
        ("pol.tar.zst", "", "4chan"),
        ("general/2024-05-01.json", '[{"type": "message", "ts": "1.0"}]', "slack"),
        ("channels.json", '[{"id": "C1", "is_general": true}]', "slack"),
    ],
)
def test_the_format_is_told_by_name_or_fields(write: Write, name: str, text: str, kind: str) -> None:
    assert thread_format(ThreadsTask(source=str(write(name, text)))) == kind


def test_a_format_that_cannot_be_told_is_asked_for(write: Write) -> None:
    path = write("a.jsonl", '{"id": 1, "body": "x"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: the format cannot be told from the fields id, body"):
        thread_format(ThreadsTask(source=str(path)))


def test_slack_exports(write: Write) -> None:
    people = [
        {"id": "U1", "name": "ann", "profile": {"display_name": "Ann", "real_name": "Ann A."}},
        {"id": "U2", "name": "bob", "profile": {"display_name": "", "real_name": "Bob B."}},
    ]
    write("export/users.json", json.dumps(people))
    write("export/channels.json", json.dumps([{"id": "C1", "name": "general", "is_general": True}]))
    monday = [
        {"type": "message", "subtype": "channel_join", "user": "U1", "ts": "99.000000", "text": "joined"},
        {
            "type": "message",
            "user": "U1",
            "ts": "100.000100",
            "text": "a &lt; b &amp;amp; c",
            "thread_ts": "100.000100",
        },
        {
            "type": "message",
            "user": "U2",
            "ts": "101.000000",
            "text": "<@U1> see <https://x.org|this>, <#C1|general>",
        },
        {
            "type": "message",
            "subtype": "bot_message",
            "bot_id": "B1",
            "username": "Robot",
            "ts": "102.0",
            "text": "<!here> <https://y.org>",
        },
    ]
    tuesday = [
        {
            "type": "message",
            "user": "U9",
            "user_profile": {"real_name": "Guest"},
            "ts": "103.0",
            "text": "yes",
            "thread_ts": "100.000100",
        },
        {"type": "message", "user": "U8", "ts": "104.0", "text": "<@U7> gone", "thread_ts": "5.0"},
    ]
    write("export/general/2024-05-06.json", json.dumps(monday))
    write("export/general/2024-05-07.json", json.dumps(tuesday))
    path = write("export/random/2024-05-06.json", json.dumps([monday[1] | {"user": "U2"}]))
    threads, counts = read(path.parents[1])
    assert [thread.id for thread in threads] == ["general", "random"]
    assert shape(threads[0]) == [
        ("general/100.000100", "Ann", "a < b &amp; c", ()),
        ("general/101.000000", "Bob B.", "@Ann see this, #general", ()),
        ("general/102.0", "Robot", "here https://y.org", ()),
        ("general/103.0", "Guest", "yes", ("general/100.000100",)),
        ("general/104.0", "U8", "@someone gone", ()),
    ]
    assert threads[0].time == 100.0001
    assert counts == {
        "read": {"files": 5, "links": 2, "posts": 7, "threads": 2},
        "dropped": {"link_to_missing_post": 1, "post_of_the_system": 1},
    }
    with pytest.raises(
        InputError, match=r"2024-05-07\.json: item 2 .*replies to post general/5\.0, which is not"
    ):
        read(path.parents[1], missing_parents="error")
    blocks, _ = read(path.parents[1], block=3)
    assert [thread.id for thread in blocks] == ["general#1", "general#2", "random"]
    bad = write("broken/general/2024-05-06.json", json.dumps([monday[1] | {"ts": "noon"}]))
    with pytest.raises(InputError, match=r"item 1 \(line 1\): field ts is 'noon', expected seconds"):
        read(bad)


def test_records_of_a_chat(write: Write, tmp_path: Path) -> None:
    rows = []
    for channel in range(8):
        for i in range(1, 9):
            text = f"The {TOPICS[(i + channel) % 9]} of channel {channel} costs {i * 7 + channel} coins."
            author = {"id": str(i), "username": NAMES[i % 6], "global_name": None}
            key = channel * 10 + i
            to = channel * 10 + max(1, i // 2) if i > 1 else None
            rows.append(api_message(i, text, to, id=str(key), channel_id=str(channel), author=author))
    task = ThreadsTask(source=str(write("d.jsonl", lines(rows))), legs=["bm25", "recency"], n_contexts=3)
    metrics = build_record_files(ContextConfig(test_share=0.3, threads=task), tmp_path / "out")
    assert metrics["records"] == 56
    assert metrics["tasks"]["threads"]["contexts"]["train"] > 2
