"""Issues and pull requests of GitHub with their comments, as its REST API or `gh … --json` writes them.

An issue is `{"number", "url", "title", "body", "user": {"login"}, "created_at"}`, a comment `{"id",
"issue_url", "body", "user", "created_at"}`, a comment of a review `{"id", "pull_request_url",
"in_reply_to_id"}`. They stand in lists or one a line, in any files. An issue with its comments is a thread.
GitHub stores no link between comments, so a comment answers the issue; a comment of a review answers the one
that it names. Quoted lines are removed. Format: https://docs.github.com/en/rest/issues
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.files.fields import content_of, id_of, is_missing, moment_of, reference_of
from retrieval.readers.files.rows import dicts_of, rows
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.message_text import without_quotes
from retrieval.text.normalize import fold

EXPECTED = 'an issue ("number", "title", "body", "user") or a comment ("id", "issue_url", "body", "user")'
_PLACE = re.compile(r"([^/]+/[^/]+)/(?:issues|pulls?)/(\d+)")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each issue with its comments as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about comments of missing issues.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a row is broken, or a comment refers to a missing issue.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, True, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    for file in files:
        for where, row, value in rows(file, (), (), EXPECTED):
            if is_missing(value.get("number")):
                yield _comment(where, row, value, file, "")
                continue
            issue = _issue(where, row, value, file)
            yield issue
            # `gh issue list --json comments` puts the comments into the issue; the API their number.
            comments = value.get("comments")
            if isinstance(comments, list):
                for one in dicts_of(comments, "comments", where):
                    yield _comment(where, row, one, file, issue.id)


def _issue(where: str, row: int, value: dict[str, Any], file: SourceFile) -> Message:
    number = id_of(value["number"], "number", where)
    key = _place(value, ("url", "html_url")) or f"#{number}"
    text = fold(without_quotes(content_of(value.get("body"), "body", where)))
    title = fold(content_of(value.get("title"), "title", where))
    return Message(
        where,
        key,
        _author(value, where),
        titled(title, text) if text else title,
        file.name,
        row,
        thread=key,
        time=moment_of(value.get("created_at", value.get("createdAt")), "created_at", where),
    )


def _comment(where: str, row: int, value: dict[str, Any], file: SourceFile, issue: str) -> Message:
    """Return one comment.

    Args:
        where: file and row, for errors.
        row: the row in records.
        value: the comment.
        file: its file.
        issue: id of the issue that it was found in, else "".
    """
    key = id_of(value.get("id"), "id", where)
    issue = issue or _place(value, ("issue_url", "pull_request_url", "html_url", "url"))
    answered = reference_of(value.get("in_reply_to_id"), "in_reply_to_id", where)
    return Message(
        where,
        f"{issue}/{key}",
        _author(value, where),
        fold(without_quotes(content_of(value.get("body"), "body", where))),
        file.name,
        row,
        f"{issue}/{answered}" if answered else issue,
        issue,
        moment_of(value.get("created_at", value.get("createdAt")), "created_at", where),
    )


def _place(value: dict[str, Any], fields: tuple[str, ...]) -> str:
    """Return `owner/repository#number` of an address in one of the fields, or ""."""
    for field in fields:
        found = _PLACE.search(value[field]) if isinstance(value.get(field), str) else None
        if found:
            return f"{found[1]}#{found[2]}"
    return ""


def _author(value: dict[str, Any], where: str) -> str:
    found = value.get("user", value.get("author"))
    found = found.get("login") if isinstance(found, dict) else found
    return reference_of(found, "user.login", where) or ANONYMOUS
