"""What is skipped for ordinary texts changes nothing: each fast path equals the slow rule for any text."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.files.csv_dialect import SEPARATORS, find_separator
from retrieval.readers.files.fields import is_missing, moment_of
from retrieval.readers.tables.table_cells import cell_text, table_of
from retrieval.readers.threads import fourchan
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text import normalize, values

#: Texts of what matters here: white space of every kind, noise, letters of several widths.
TEXTS = st.one_of(
    st.text(
        st.sampled_from("ab \t\n\r\x0b\x0c\x1c\x85\xa0\u2028\u3000\x00\xad\u200b\ufeff\ud83dé本😀\\n<"),
        max_size=24,
    ),
    st.text(max_size=24),
)
NOISE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff\ufffe\uffff]")
BREAK = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")


def slow_fold(text: str) -> str:
    """White space as single blanks; noise goes where something is not printable."""
    folded = " ".join(text.split())
    return folded if folded.isprintable() else " ".join(NOISE.sub("", text).split())


def slow_lines(text: str) -> str:
    """Lines without blanks at their ends, and at most one blank line between two."""
    if BREAK.search(text.strip()) is None:
        return slow_fold(text)
    lines: list[str] = []
    for line in NOISE.sub("", text).splitlines():
        line = line.rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).rstrip("\n")


@settings(max_examples=600, database=None, deadline=None)
@given(TEXTS)
@example(" a  b ")
@example("\x00\n  a")
@example("  a\n\n\n b\n")
def test_normalised_texts_equal_the_slow_rule(text: str) -> None:
    assert normalize.fold(text) == slow_fold(text)
    lines = slow_lines(text)
    assert normalize.keep_lines(text) == lines
    assert normalize.one_paragraph(text) == "\n".join(line for line in lines.split("\n") if line)
    assert normalize.answer_text(text) == dedent(lines).strip()


@settings(max_examples=300, database=None, deadline=None)
@given(
    TEXTS | st.sampled_from(["None", " nan\n", "NULL", "<NA>", "NaT", "nil", "undefined", "\\N", "n", "no"])
)
def test_missing_values_equal_the_slow_rule(text: str) -> None:
    missing = {"", "none", "null", "nan", "<na>", "nat", "nil", "undefined", "\\n"}
    assert is_missing(text) == (text.strip().lower() in missing)
    assert values.is_empty(text) == (not text.strip())


@settings(max_examples=300, database=None, deadline=None)
# From 1980: the milliseconds of earlier years are taken for seconds.
@given(st.datetimes(datetime(1980, 1, 1), datetime(2999, 1, 1)))
def test_a_moment_is_the_same_in_every_form(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    seconds = moment.timestamp()
    forms = (
        seconds,
        int(seconds),
        str(int(seconds)),
        f"{seconds}",
        moment,
        moment.isoformat(),
        seconds * 1000,
    )
    expected = [seconds] * len(forms)
    assert [moment_of(form, "time", "here") for form in forms] == expected


CELLS = TEXTS | st.sampled_from(["", "a", "a b", " a", "a ", "a|b", "a |b", "|", None, 7.0, True])


@settings(max_examples=300, database=None, deadline=None)
@given(st.lists(st.lists(CELLS, max_size=4), min_size=2, max_size=4))
@example([["a", "b"], ["c"]])
@example([["a", ""], ["", "b "]])
@example([["a", "b"], [None, "c"]])
def test_cells_looked_at_together_equal_each_one_alone(lines: list[list[Any]]) -> None:
    width = max(map(len, lines))
    each = [tuple(cell_text(cell, "here") for cell in line) for line in lines]
    tally = Tally()
    found = table_of("key", lines, "", "here", tally)
    assert found is not None
    assert [found.header, *found.rows] == [line + ("",) * (width - len(line)) for line in each]
    assert tally.read["ragged_rows_padded"] == sum(len(line) != len(lines[0]) for line in lines)


def slow_separator(lines: list[str], first: str) -> str:
    """Every sign splits all lines; the most even split wins, then the one with more cells."""
    widths = {}
    for sign in dict.fromkeys((first, *SEPARATORS)):
        rows = csv.reader([f"{line}\n" for line in lines], delimiter=sign)
        widths[sign] = [len(row) for row in rows if any(cell.strip() for cell in row)]

    def evenness(found: list[int]) -> tuple[float, int]:
        return (found.count(found[0]) / len(found), found[0]) if found and found[0] > 1 else (0.0, 0)

    best = max(widths, key=lambda sign: evenness(widths[sign]))
    if evenness(widths[best])[1]:
        return best
    if len(widths[first]) > 2 and evenness(widths[first][1:])[0] == 1.0:
        return first
    return next((sign for sign, found in widths.items() if set(found) <= {1}), first)


@settings(max_examples=600, database=None, deadline=None)
@given(st.lists(st.text(st.sampled_from('ab,;\t|" '), max_size=9), max_size=6), st.sampled_from(",;\t"))
@example(["a,b;c;d", "1,2;3;4"], ",")
@example(["a,b;c", "1,2;3"], ",")
@example(["a;b,c", "d,e"], ",")
def test_the_separator_equals_that_of_a_search_with_every_sign(lines: list[str], first: str) -> None:
    assert find_separator(lines, first) == slow_separator(lines, first)


NAMES = st.sampled_from(["Anonymous", " Anonymous", "Anonymous<br>", "Ann", "A&amp;n", "!x", "", None])
MARKS = st.sampled_from([None, "", "!x", "!y", "Ann"])


@settings(max_examples=80, database=None, deadline=None)
@given(st.lists(st.tuples(NAMES, MARKS), min_size=1, max_size=5), st.booleans())
def test_authors_equal_the_slow_rule(people: list[tuple[str | None, str | None]], marked: bool) -> None:
    posts = [
        {"no": number, "com": "x", "name": name, "trip": mark if marked else None}
        for number, (name, mark) in enumerate(people, start=1)
    ]
    named = []
    for post in posts:
        clean = fourchan.parse_comment(post["name"] or "", "").text
        named.append(clean if clean not in ("", "Anonymous") else post["trip"] or "Anonymous")
    marks = [post["trip"] or "" for post in posts]
    several = {name for name in named if len({m for n, m in zip(named, marks, strict=True) if n == name}) > 1}
    expected = [
        f"{name} {mark}" if name in several and mark not in ("", name) else name
        for name, mark in zip(named, marks, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.ndjson"
        path.write_text(json.dumps({"posts": posts}), encoding="utf-8")
        (thread,) = fourchan.read_threads([("", SourceFile(path, path.name))], ReaderOptions(), Tally())
    assert [post.author for post in thread.posts] == expected
