"""Stack Exchange's data dump: `Posts.xml` with `Comments.xml` and `Users.xml` beside it.

A row of Posts is `<row Id PostTypeId ParentId Title Body OwnerUserId CreationDate/>`, where 1 is a question
and 2 an answer. A row of Comments is `<row Id PostId Text UserId CreationDate/>`. A question with its answers
and comments is a thread; an answer answers the question, a comment the post below which it stands. Other
posts (wikis of tags) are dropped and counted. Format:
https://meta.stackexchange.com/questions/2677
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from xml.etree import ElementTree

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.corpus.unpacking import open_binary
from retrieval.readers.files.fields import id_of, moment_of, reference_of
from retrieval.readers.threads.fourchan import parse_comment
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.normalize import fold

_QUESTION, _ANSWER = "1", "2"


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each question with its answers and comments as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about answers to missing questions.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a file is broken, or an answer refers to a missing question.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, False, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    names: dict[str, dict[str, str]] = {}
    for file in files:
        if file.path.name.lower().startswith("users.xml"):
            folder = PurePosixPath(file.name).parent.as_posix()
            names[folder] = {
                row["Id"]: fold(row["DisplayName"])
                for _, _, row in _rows(file)
                if row.get("Id") and row.get("DisplayName")
            }
    for file in files:
        # Ids are unique within a site, which is a folder.
        site = PurePosixPath(file.name).parent.as_posix()
        if file.path.name.lower().startswith("posts.xml"):
            for where, number, row in _rows(file):
                yield _post(where, number, row, file, names.get(site, {}))
        elif file.path.name.lower().startswith("comments.xml"):
            for where, number, row in _rows(file):
                yield _comment(where, number, row, file, names.get(site, {}))


def _post(
    where: str, number: int, row: Mapping[str, str], file: SourceFile, names: Mapping[str, str]
) -> Message:
    """Return a question, an answer, or a dropped message for another post.

    Args:
        where: file and row, for errors.
        number: the row in records.
        row: its attributes.
        file: its file.
        names: the people of the site by id.
    """
    site = PurePosixPath(file.name).parent.as_posix()
    key = id_of(row.get("Id"), "Id", where)
    if row.get("PostTypeId", _QUESTION) not in (_QUESTION, _ANSWER):
        return Message(where, key, "", "", file.name, number, scope=site, dropped="post_of_the_system")
    parent = reference_of(row.get("ParentId"), "ParentId", where)
    text, title = parse_comment(row.get("Body", ""), "", bool(parent)).text, fold(row.get("Title", ""))
    return Message(
        where,
        key,
        _author(row, ("OwnerUserId", "OwnerDisplayName"), names),
        titled(title, text) if text else title,
        file.name,
        number,
        parent,
        time=moment_of(row.get("CreationDate"), "CreationDate", where),
        scope=site,
    )


def _comment(
    where: str, number: int, row: Mapping[str, str], file: SourceFile, names: Mapping[str, str]
) -> Message:
    """Return a comment. Its id begins with `c`, because posts and comments count apart.

    Args:
        where: file and row, for errors.
        number: the row in records.
        row: its attributes.
        file: its file.
        names: the people of the site by id.
    """
    return Message(
        where,
        f"c{id_of(row.get('Id'), 'Id', where)}",
        _author(row, ("UserId", "UserDisplayName"), names),
        fold(row.get("Text", "")),
        file.name,
        number,
        reference_of(row.get("PostId"), "PostId", where),
        time=moment_of(row.get("CreationDate"), "CreationDate", where),
        scope=PurePosixPath(file.name).parent.as_posix(),
    )


def _author(row: Mapping[str, str], fields: tuple[str, str], names: Mapping[str, str]) -> str:
    user, name = row.get(fields[0], ""), row.get(fields[1], "")
    # Without Users.xml, the id still tells people apart.
    return names.get(user) or fold(name) or (f"user{user}" if user else ANONYMOUS)


def _rows(file: SourceFile) -> Iterator[tuple[str, int, Mapping[str, str]]]:
    """Yield (place for errors, row number, attributes) of each `row` element."""
    number = 0
    try:
        with open_binary(file.path) as handle:
            steps = ElementTree.iterparse(handle, events=("start", "end"))
            root = None
            for event, element in steps:
                if root is None:
                    root = element
                if event == "end" and element.tag == "row":
                    number += 1
                    yield f"{file.path}: row {number}", number, dict(element.attrib)
                    # Finished elements are dropped, or the whole file would be in memory.
                    root.clear()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise InputError(
            f"{file.path}:{line}: broken XML at column {column + 1} ({error.msg}); expected rows of Stack "
            "Exchange's dump"
        ) from error
