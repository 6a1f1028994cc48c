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
