"""The IRC reader: lines, annotations, splits by folder, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from jora_core.base.errors import InputError
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.threads.irc import read_threads
from retrieval.readers.threads.registry import thread_files
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.settings.tasks import ThreadsTask

Write = Callable[[str, str], Path]

LOG = """[12:18] <|trey|> usual, quite   stable though  :)
=== topyli has left #ubuntu []
[12:19]  * Matt| scrolls up
[12:19] <Matt|> |trey|: thanks
[12:20] <epod>
nonsense
[12:21] <epod> done > gone
"""


def read(
    source: Path, test: Path | None = None, missing: Literal["error", "drop"] = "error"
) -> tuple[list[Thread], Tally]:
    task = ThreadsTask(
        source=str(source),
        test_source=str(test) if test else None,
        format="irc",
        legs=["bm25"],
        missing_parents=missing,
    )
    tally = Tally()
    return list(read_threads(thread_files(task), ReaderOptions(missing), tally)), tally


def test_messages_actions_and_links(write: Write) -> None:
    log = write("irc/train/one.ascii.txt", LOG)
    write("irc/train/one.annotation.txt", "0 0 - \n0 3 - \n1 3 -\n0 3 -\n6 3 - \n\n")
    threads, tally = read(log.parents[1])
    (only,) = threads
    assert (only.id, only.split, only.source) == ("train/one", "train", "train/one.ascii.txt")
    assert [(p.id, p.author, p.text, p.parents, p.has_known_parents) for p in only.posts] == [
        ("0", "|trey|", "usual, quite stable though :)", (), True),
        ("2", "Matt|", "scrolls up", (), False),
        ("3", "Matt|", "|trey|: thanks", ("0",), True),
        ("4", "epod", "", (), False),
        ("6", "epod", "done > gone", ("3",), True),
    ]
    assert tally.as_dict()["dropped"] == {"link_to_system_line": 1, "link_twice": 1, "system_line": 2}
    assert tally.read["conversation_starts"] == 1


def test_times_follow_the_clock_and_the_day_of_the_name(write: Write) -> None:
    clocks = ["23:50", "23:58:30", "00:03", "23:59", "00:01", "11:00", "10:59", "23:10"]
    log = write("irc/2004-11-15.ascii.txt", "".join(f"[{clock}] <ana> hi\n" for clock in clocks))
    write("irc/2004-11-15.annotation.txt", "0 1 -\n")
    write("irc/undated.ascii.txt", "[23:50] <ana> hi\n")
    write("irc/undated.annotation.txt", "0 0 -\n")
    dated, undated = read(log.parent)[0]
    assert [post.time for post in undated.posts] == [None]
    times = [post.time for post in dated.posts if post.time is not None]
    assert len(times) == len(clocks)
    midnight = times[0] - (23 * 60 + 50) * 60
    assert midnight == dated.time
    minutes = [(time - midnight) / 60 for time in times]
    day = 24 * 60
    # Past midnight is the next day; a clock that goes back by minutes stands still.
    assert minutes[:3] == [23 * 60 + 50, 23 * 60 + 58.5, day + 3]
    assert minutes[3] == day + 23 * 60 + 59 and minutes[4:] == [
        2 * day + 1,
        2 * day + 660,
        2 * day + 660,
        2 * day + 23 * 60 + 10,
    ]


def test_folders_give_the_split(write: Write) -> None:
    for name in ("train/a", "dev/b", "other/c"):
        write(f"irc/{name}.ascii.txt", LOG)
        path = write(f"irc/{name}.annotation.txt", "0 3 -\n")
    assert {t.id: t.split for t in read(path.parents[1])[0]} == {
        "dev/b": "test",
        "other/c": "",
        "train/a": "train",
    }
    given, _ = read(path.parents[1] / "dev", path.parents[1] / "other" / "*.ascii.txt")
    assert [(t.id, t.split) for t in given] == [("b", "train"), ("c", "test")]


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        (
            "0 3 -\n3 70 -\n",
            r"one\.annotation\.txt:2: message 70 does not exist, one\.ascii\.txt has 7 lines",
        ),
        ("0 three -\n", r"one\.annotation\.txt:1: found '0 three -', expected `PARENT CHILD -`"),
        ("-1 3 -\n", r"one\.annotation\.txt:1: found"),
        ("5\n", r"one\.annotation\.txt:1: found '5'"),
        (None, r"one\.ascii\.txt: no annotations; expected one\.annotation\.txt"),
    ],
)
def test_bad_annotations_are_named(write: Write, notes: str | None, said: str) -> None:
    log = write("one.ascii.txt", LOG)
    if notes is not None:
        write("one.annotation.txt", notes)
    with pytest.raises(InputError, match=said):
        read(log)


def test_links_to_missing_messages_can_be_dropped(write: Write) -> None:
    log = write("one.ascii.txt", LOG)
    write("one.annotation.txt", "0 3 -\n3 70 -\n")
    assert read(log, missing="drop")[1].dropped["link_to_missing_post"] == 1


def test_a_log_without_messages_is_refused(write: Write) -> None:
    log = write("one.ascii.txt", "=== nobody is here\n")
    write("one.annotation.txt", "")
    with pytest.raises(InputError, match="log without messages"):
        read(log)


#: Lines as clients write them, with the nick and text that they say; None for lines of the system.
SPOKEN = [
    ("[03:41] < ann> hi", ("ann", "hi")),  # irssi: a space where an operator has a sign
    ("[03:41] <@ann> hi", ("ann", "hi")),
    ("[03:41] <+ann> hi", ("ann", "hi")),
    ("[03:41] <~ann> hi", ("ann", "hi")),
    ("[03:41] <%ann> hi", ("ann", "hi")),
    ("03:41 <&ann> hi", ("ann", "hi")),
    ("[03:41:07] <ann> hi", ("ann", "hi")),
    ("2004-11-15 03:41:07 <ann> hi", ("ann", "hi")),
    ("[2004-11-15 03:41] <ann> hi", ("ann", "hi")),
    ("2004-11-15T03:41:07 <ann> hi", ("ann", "hi")),
    ("[03:41] * @ann waves", ("ann", "waves")),
    ("2004-11-15 03:41:07\t@ann\thi", ("ann", "hi")),  # WeeChat
    ("2004-11-15 03:41:07\t *\tann waves", ("ann", "waves")),
    ("[03:41] <ann> \x0304,01red\x03 lamp", ("ann", "red lamp")),
    ("[03:41] <\x0303ann\x03> hi", ("ann", "hi")),
    ("[03:41] <ann> \x02bold\x02 \x1funder\x1f \x16turned\x0f", ("ann", "bold under turned")),
    ("[03:41] <ann> \x1b[31mred\x1b[0m", ("ann", "red")),
    ("[03:41] *** ann has joined", None),
    ("[03:41] -!- ann has quit", None),
    ("2004-11-15 03:41:07\t-->\tann has joined", None),
]


@pytest.mark.parametrize(("line", "spoken"), SPOKEN)
def test_nicks_and_texts_as_clients_write_them(
    write: Write, line: str, spoken: tuple[str, str] | None
) -> None:
    log = write("day.ascii.txt", f"[03:40] <bob> first\n{line}\n")
    write("day.annotation.txt", "0 1 -\n")
    (thread,), tally = read(log)
    assert [(post.author, post.text) for post in thread.posts[1:]] == ([spoken] if spoken else [])
    assert tally.dropped["system_line"] == (spoken is None)


@pytest.mark.parametrize("text", ["café", "naïve – so", "Größe", "Привет"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "koi8-r", "utf-16"])
def test_a_log_of_another_encoding_is_named(write: Write, text: str, encoding: str) -> None:
    log = write("day.ascii.txt", "")
    log.write_bytes(f"[03:40] <bob> {text}\n".encode(encoding, "replace"))
    write("day.annotation.txt", "0 0 -\n")
    if log.read_bytes().isascii():
        assert read(log)[1].read["posts"] == 1  # what the encoding lacks became a question mark
        return
    with pytest.raises(InputError, match=r"day\.ascii\.txt.*save the file as UTF-8"):
        read(log)
