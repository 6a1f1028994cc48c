"""Threads in 4chan's API form: `{"posts": [{"no", "resto", "now", "time", "name", "com", "sub"?}, …]}`.

A file has one thread on each line (`.ndjson`, `.jsonl`), or one thread, a list of threads, or a page of a
board's index, `{"threads": […]}` (`.json`). It may be packed by `.gz` or `.zst`, or be a dump (`.tar.zst`,
`.tar.gz`, `.tar`) of such files. `com` is HTML, in which quotelinks mark the posts of the thread that a post
replies to. Format: https://github.com/4chan/4chan-API

The labelled dump of /pol/ (Papasavva et al., ICWSM 2020, arXiv:2001.07487) adds keys to each post:
`extracted_poster_id` names a nameless post's author, as the API's own `id` does; `entities` (named entities)
and `perspectives` (toxicity scores) are labels of other tasks and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile, unpacked_name
from retrieval.corpus.types import Post, Tally, Thread
from retrieval.readers.files.fields import content_of, is_missing, moment_of
from retrieval.readers.files.json_stream import holds_json_array, stream_items
from retrieval.readers.files.packed_lines import json_objects
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.message_text import visible
from retrieval.text.normalize import fold

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

EXPECTED = 'one thread a line: {"posts": [{"no": 1, "com": "…"}, …]}'

# At most 19 digits: a post number fits into 63 bits.
_TARGET = re.compile(r"#p([0-9]{1,19})$")
# Written links such as `>>123 (OP)` or `>>>/pol/123`, in texts whose links are no HTML.
_PLAIN_LINK = re.compile(r">>+(?:/\w+/)?\d*(?:\s*\((?:OP|You|Dead|Cross-thread)\))?")
_DIGITS = re.compile(r"[0-9]{1,19}$")
_LINE_BREAKERS = frozenset({"br", "p", "div", "li", "tr", "pre", "table", "blockquote"})
# Classes in which mail programs put what a mail answers, and the line before it.
_QUOTING = re.compile(r"\b(?:gmail_quote|gmail_attr|moz-cite-prefix|yahoo_quoted|protonmail_quote)\b")
_UNSEEN = frozenset({"script", "style", "template", "noscript", "head", "title"})


class Comment(NamedTuple):
    """The content of a post's HTML: its text and its links.

    Attributes:
        text: clean text.
        links: ids of the posts of this thread that it links to, each once.
        cross_thread: number of links to other threads.
        dead: number of links to posts that were deleted.
    """

    text: str
    links: tuple[str, ...]
    cross_thread: int = 0
    dead: int = 0


def parse_comment(html: str, thread_no: str, is_reply: bool = False) -> Comment:
    """Parse the HTML of one `com` into the text without quotelinks and quoted lines, and the links.

    A link is read from its target (`#p123`, or a path whose thread is `thread_no`), never from its text,
    which `<wbr>` may split. Dead links are spans. Neither dead links nor links to other
    threads name a parent.

    Args:
        html: the text of a post.
        thread_no: number of its thread.
        is_reply: whether to leave out `blockquote` and the like, in which a reply repeats what it answers.
    """
    # A text without markup needs no parser.
    if "<" not in html and "&" not in html:
        return Comment(clean_comment(html), ())
    from selectolax.lexbor import LexborHTMLParser

    # The wrapper keeps stray <html>, <head> or <frameset> tags of a comment from replacing the body.
    body = LexborHTMLParser(f"<body><div>{html}").body
    if body is None:
        return Comment(clean_comment(html), ())
    pieces: list[str] = []
    links: list[str] = []
    cross = dead = 0
    # A stack instead of recursion, because hostile pages nest deeper than Python recurses. `quiet` marks
    # quoted parts, whose links still count while their text does not. None ends a block.
    stack: list[tuple[LexborNode | None, bool]] = [(body, False)]
    while stack:
        node, quiet = stack.pop()
        if node is None:
            pieces.append("\n")
            continue
        following = node.next
        # The sibling is pushed first, so that the children, pushed last, come first: document order. The
        # body's siblings are no part of the comment.
        if following is not None and node is not body:
            stack.append((following, quiet))
        tag = node.tag or ""
        inner = quiet
        if tag == "-text":
            if not quiet:
                pieces.append(node.text_content or "")
            continue
        if tag in _UNSEEN:
            continue
        if tag in _LINE_BREAKERS:
            pieces.append("\n")
            stack.append((None, quiet))
        elif tag in ("a", "span"):
            attributes = node.attributes
            classes = (attributes.get("class") or "").split()
            if tag == "a" and "quotelink" in classes:
                target = _target(attributes.get("href") or "", thread_no)
                if target:
                    links.append(target)
                else:
                    cross += 1
                inner = True
                pieces.append(" >>0 ")  # taken out by clean_comment together with a "(OP)" that may follow
            elif tag == "span" and "deadlink" in classes:
                dead += 1
                inner = True
                pieces.append(" >>0 ")
            # Quoted text (`>like this`) repeats the parent and would give the answer away.
            elif tag == "span" and "quote" in classes:
                inner = True
        if is_reply and (tag == "blockquote" or _QUOTING.search(node.attributes.get("class") or "")):
            inner = True
        child = node.first_child
        if child is not None:
            stack.append((child, inner))
    return Comment(clean_comment("".join(pieces)), tuple(dict.fromkeys(links)), cross, dead)


def _target(href: str, thread_no: str) -> str | None:
    """Return the id of the post that a quotelink leads to, or None if that post is not in this thread."""
    match = _TARGET.search(href)
    if match is None:
        return None
    path = href[: match.start()].rstrip("/")
    # `/b/thread/123#p456` or `123.html#p456` leads to thread 123; a bare `#p456` stays in this one.
    if path and path.rsplit("/", 1)[-1].removesuffix(".html") != thread_no:
        return None
    # `int` drops leading zeros, so that the id equals the post's own.
    return str(int(match[1]))


def clean_comment(text: str) -> str:
    """Return a text without plain `>>123` links and quoted lines, with folded white space."""
    if ">" not in text:
        return fold(text)
    lines = (_PLAIN_LINK.sub(" ", line).strip() for line in text.split("\n"))
    return fold(" ".join(line for line in lines if not line.startswith(">")))


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read the threads of all files, in file order.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about links to missing posts of the thread.
        tally: counts files, threads, posts and links, and what was dropped.

    Raises:
        InputError: a line is broken, a thread has no posts, a post has no number, or a link within the
            thread leads to a missing post.
    """
    for split, file in files:
        tally.read["files"] += 1
        for where, row, value in _objects(file):
            tally.read["threads"] += 1
            yield _thread(value, _Place(file.name, row, where), split, options, tally)


def _objects(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for where, position, value in _values(file):
        threads = value.get("threads")
        if "posts" in value or not isinstance(threads, list):
            yield where, position, value
            continue
        # A page of a board's index, as `/BOARD/1.json` of the API gives it.
        for number, thread in enumerate(threads):
            if not isinstance(thread, dict):
                raise InputError(
                    f'{where}: thread {number} is {type(thread).__name__}; expected {{"posts": [...]}}'
                )
            yield f"{where}, thread {number}", position, thread


def _values(file: SourceFile) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if not unpacked_name(file.path).endswith(".json") and not holds_json_array(file.path):
        yield from json_objects(file.path, EXPECTED)
        return
    for where, position, item in stream_items(file.path, EXPECTED):
        if not isinstance(item, dict):
            raise InputError(f"{where}: found {type(item).__name__}, expected {EXPECTED}")
        yield where, position, item


class _Place(NamedTuple):
    """The place of a thread: file name and row for records, and `where` for errors."""

    source: str
    row: int
    where: str


def _thread(value: dict[str, Any], place: _Place, split: str, options: ReaderOptions, tally: Tally) -> Thread:
    where = place.where
    raw_posts = value.get("posts")
    if not isinstance(raw_posts, list) or not raw_posts:
        raise InputError(f"{where}: thread without posts; expected {EXPECTED}; remove the line")
    by_number: dict[int, dict[str, Any]] = {}
    tally.read["posts"] += len(raw_posts)
    # Dumps that were joined from several crawls may repeat posts; the first one counts.
    for position, raw in enumerate(raw_posts):
        number = _number(raw, where, position)
        if number in by_number:
            tally.dropped["post_number_twice"] += 1
        else:
            by_number[number] = raw
    names = _authors(by_number, where)
    numbers = sorted(by_number)  # numbers grow with time on a board
    opening = by_number[numbers[0]]
    resto = opening.get("resto")
    if not is_missing(resto):
        resto = _whole(resto)
        if resto is None:
            kind = type(opening["resto"]).__name__
            raise InputError(f'{where}: field "resto" of post {numbers[0]} is {kind}, expected a number')
    # `resto` is 0 in an opening post, whose own number is the thread's. It is set where a dump lacks the
    # opening post.
    thread_no = str(numbers[0] if is_missing(resto) or not resto else resto)
    posts = []
    for number in numbers:
        raw = by_number[number]
        comment = parse_comment(_string(raw, "com", where), thread_no)
        tally.read["links"] += comment.cross_thread + comment.dead
        tally.dropped["link_to_other_thread"] += comment.cross_thread
        tally.dropped["link_dead"] += comment.dead
        parents = []
        for link in comment.links:
            tally.read["links"] += 1
            if int(link) in by_number:
                parents.append(link)
            elif options.missing_parents == "drop":
                tally.dropped["link_to_missing_post"] += 1
            else:
                raise InputError(
                    f"{where}: post {number} replies to post {link}, which is not in the thread; add the "
                    "post, remove the link, or set threads.missing_parents to drop"
                )
        subject = clean_comment(_string(raw, "sub", where)) if raw.get("sub") else ""
        text = titled(subject, comment.text) if comment.text else subject
        time = moment_of(raw.get("time"), "time", where)
        posts.append(Post(str(number), names[number], visible(text), tuple(parents), place.row, time=time))
    board = value.get("board") or opening.get("board")
    # Numbers are unique on one board only.
    thread_id = f"{board}/{thread_no}" if isinstance(board, str) and board else thread_no
    return Thread(thread_id, tuple(posts), place.source, place.row, split, posts[0].time)


def _number(raw: Any, where: str, position: int) -> int:
    number = _whole(raw.get("no")) if isinstance(raw, dict) else None
    if number is None or not 0 <= number < 2**63:
        raise InputError(
            f'{where}: post {position + 1} of the thread has no number; expected an integer "no"'
        )
    return number


def _whole(value: Any) -> int | None:
    """Return a whole number that is given as a number or as its digits, or None."""
    # `True` is an int in Python, but no post number.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and _DIGITS.match(value.strip()):
        return int(value)
    return None


def _string(raw: dict[str, Any], field: str, where: str) -> str:
    try:
        return content_of(raw.get(field), field, where)
    except InputError:
        kind = type(raw[field]).__name__
        raise InputError(f'{where}: field "{field}" of post {raw["no"]} is {kind}, expected text') from None


def _authors(posts: Mapping[int, dict[str, Any]], where: str) -> dict[int, str]:
    """Return the name of each post's author, different for authors whose names are equal.

    Of authors with the same name, the tripcode or the poster's id follows the name.
    """
    marks = {number: _mark(raw) for number, raw in posts.items()}
    written = {number: _author(raw, marks[number], where) for number, raw in posts.items()}
    # Most threads have no marks, and then nothing tells equal names apart.
    if not any(marks.values()):
        return written
    # The names that several marks bear. A post of a known mark without a name is no second author.
    borne: dict[str, set[str]] = {}
    for number, name in written.items():
        borne.setdefault(name, set()).add(marks[number])
    return {
        number: f"{name} {marks[number]}"
        if len(borne[name]) > 1 and marks[number] not in ("", name)
        else name
        for number, name in written.items()
    }


def _mark(raw: dict[str, Any]) -> str:
    """Return what tells a post's author apart: the tripcode, else the poster's id, else ""."""
    for key in ("trip", "id", "poster_hash", "extracted_poster_id"):
        mark = raw.get(key)
        if isinstance(mark, str) and not is_missing(mark):
            return visible(fold(mark))
    return ""


def _author(raw: dict[str, Any], mark: str, where: str) -> str:
    """Return the name of a post's author.

    A nameless post gets its tripcode or poster's id, so that its author differs from other nameless authors.
    """
    # Nearly all posts are nameless. Names are HTML as well: their special characters are escaped.
    name = raw.get("name")
    if name != ANONYMOUS:
        name = visible(parse_comment(_string(raw, "name", where), "").text)
    return name if name and name != ANONYMOUS else mark or ANONYMOUS
