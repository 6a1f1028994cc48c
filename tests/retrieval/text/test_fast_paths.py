"""What is skipped for ordinary texts changes nothing: each fast path equals the slow rule for any text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from textwrap import dedent

from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval.readers.files.fields import is_missing, moment_of
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
