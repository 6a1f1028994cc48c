"""Compare answers: denotations of table questions, exact match and F1 of open questions, post labels.

The denotation rules are those of WikiTableQuestions' official evaluator (Pasupat and Liang 2015): predicted
and target sets are of equal size, and each target matches as a normalised string, as a number, or as a date.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from retrieval.prompts.templates import ANSWER_SEPARATOR
from retrieval.text.words import tokenize

NUMBER_TOLERANCE = 1e-6
#: Bounds on the search for a cut of a generated list: an answer of a broken model may be thousands of commas,
#: and the number of ways to cut a list is exponential in its length.
MAX_PIECES = 256
MAX_STATES = 10_000

#: Before the answer, where a style teaches to write something else first.
ANSWER_MARK = "##Answer:"

# Typographic quotes and dashes become plain ones, as in the official evaluator.
_QUOTES = str.maketrans(dict.fromkeys("‘’´`", "'") | dict.fromkeys("“”", '"') | dict.fromkeys("‐‑‒–—−", "-"))
# Citation marks at the end (`[3]`, `*`, `#`), but not a bracket that is the whole text.
_CITATION = re.compile(r"(?:(?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])+$")
# A parenthesis at the end, such as `Oslo (Norway)`, but not one that is the whole text.
_DETAILS = re.compile(r"(?<!^)(?: \([^)]*\))+$")
# Thousands are separated by commas, or by blanks as in the SI; India groups by two digits.
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{2,3})*,\d{3}|(?:[ \u00a0\u202f]\d{3})+)(?:\.\d+)?")
_GROUP = re.compile("[, \u00a0\u202f]")
_QUOTED = re.compile(r'^"([^"]*)"$')
# At most nine digits: a broken model may write thousands, and Python refuses to convert so many.
_LABEL = re.compile(r"^\s*#\s*(?P<number>\d{1,9})(?!\d)\s*(?P<author>.*?)[\s.,;:!?]*$")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation))


def normalize(text: str) -> str:
    """Return a text as the official evaluator normalises it: without accents, citations and details.

    Typographic quotes become plain ones.
    """
    text = "".join(
        c for c in unicodedata.normalize("NFKD", text.translate(_QUOTES)) if not unicodedata.combining(c)
    )
    # A second time, because the decomposition (NFKD) makes new such signs.
    text = text.translate(_QUOTES)
    # Each removal may uncover another: a citation behind a detail, a quotation around both.
    while True:
        before = text
        text = _CITATION.sub("", text.strip())
        text = _DETAILS.sub("", text.strip())
        text = _QUOTED.sub(r"\1", text.strip())
        if text == before:
            break
    return " ".join(text.removesuffix(".").split()).lower()


@dataclass(frozen=True)
class Value:
    """An answer in the form in which the official evaluator compares it.

    Attributes:
        text: the normalised text.
        number: value of the text, if it is a number.
        date: (year, month, day) of the text, if it is a date; -1 for an unknown part.
    """

    text: str
    number: float | None = None
    date: tuple[int, int, int] | None = None

    def matches(self, other: Value) -> bool:
        """Return whether two values are equal as texts, as numbers, or as dates."""
        if self.text == other.text:
            return True
        # Two numbers are compared by value alone: `1,000`, `1000.0` and `1e3` are equal.
        if self.number is not None and other.number is not None:
            return abs(self.number - other.number) < NUMBER_TOLERANCE
        return self.date is not None and self.date == other.date


@lru_cache(maxsize=65536)
def parse_value(text: str) -> Value:
    """Parse an answer as a text and, if possible, as a number (also `1e3` and `1,000`) or a date.

    Dates are `YYYY-MM-DD`, with `xx` for an unknown part.
    """
    plain = text.strip()
    form = normalize(text)
    number = _number(plain)
    if number is not None:
        return Value(form, number=number)
    date = _date(plain.lower())
    if date is not None and date[1:] == (-1, -1):  # the evaluator takes a year alone for a number
        return Value(form, number=float(date[0]))
    return Value(form, date=date)


def _number(text: str) -> float | None:
    text = text.translate(_QUOTES)
    # The evaluator gets numbers of tables in plain form, from the tagged data; predictions are as in tables.
    if _GROUPED.fullmatch(text):
        text = _GROUP.sub("", text)
    try:
        value = float(text)
    except ValueError:
        return None
    # `float` also reads "nan" and "inf", which are words in an answer.
    return value if math.isfinite(value) else None


def _date(text: str) -> tuple[int, int, int] | None:
    parts = text.split("-")
    if len(parts) != 3:
        return None
    try:
        year = -1 if parts[0] in ("xx", "xxxx") else int(parts[0])
        month = -1 if parts[1] == "xx" else int(parts[1])
        day = -1 if parts[2] == "xx" else int(parts[2])
    except ValueError:
        return None
    if (year, month, day) == (-1, -1, -1):
        return None
    if not (month == -1 or 1 <= month <= 12) or not (day == -1 or 1 <= day <= 31):
        return None
    return year, month, day


def denotation_correct(prediction: str | Sequence[str], gold: Sequence[str]) -> bool:
    """Return whether a prediction has the same denotation as the gold answers, in any order.

    A generated string joins its answers by `, `, which may also occur within an answer (`Bangkok, Thailand`).
    So every way of cutting the string at `, ` is tried.
    """
    targets = _unique(gold)
    if not isinstance(prediction, str):
        return _sets_match(_unique(prediction), targets)
    pieces = prediction.strip().split(ANSWER_SEPARATOR)
    if len(pieces) > MAX_PIECES:
        return False
    # Counted before normalising, which may remove a part with commas.
    longest = max((answer.count(",") for answer in gold), default=0) + 2
    return _segments(pieces, targets, longest)


def _unique(answers: Sequence[str]) -> list[Value]:
    """Return the answers without repeats, because the evaluator counts equal texts once."""
    return list({value.text: value for value in map(parse_value, answers)}.values())


def _sets_match(predicted: list[Value], targets: list[Value]) -> bool:
    if len(predicted) != len(targets):
        return False
    return all(any(target.matches(value) for value in predicted) for target in targets)


def _segments(pieces: list[str], targets: list[Value], longest: int) -> bool:
    """Return whether the pieces can be cut into runs so that each run matches a target and every target is
    matched.

    A run has at most `longest` pieces. `met[p]` holds the sets of targets (as bit masks) that cuts of the
    first `p` pieces match.
    """
    met: list[set[int]] = [{0}] + [set() for _ in pieces]
    for start in range(len(pieces)):
        if not met[start]:
            continue
        # A run of pieces longer than the answer with most commas can match nothing.
        for end in range(start + 1, min(start + longest, len(pieces)) + 1):
            value = parse_value(ANSWER_SEPARATOR.join(pieces[start:end]))
            for i, target in enumerate(targets):
                if target.matches(value):
                    # A target may be matched by several runs: predicted answers are compared as a set.
                    met[end].update(mask | 1 << i for mask in met[start])
        # Not needed any more; this bounds the memory to `longest` sets.
        met[start] = set()
        if len(met[start + 1]) > MAX_STATES:  # only an adversary's lists of look-alikes get here
            return False
    return (1 << len(targets)) - 1 in met[-1]


def exact_match(prediction: str, gold: Sequence[str]) -> bool:
    """Return whether a prediction equals an accepted answer by SQuAD's rules.

    The rules ignore case, articles, punctuation and spacing. Other spellings of the same words, such as full-
    width letters or Arabic vowel marks, are equal too.
    """
    said = _plain(prediction)
    return any(said == (wanted := _plain(answer)) or _same_words(said, wanted) for answer in gold)


def token_f1(prediction: str, gold: Sequence[str]) -> float:
    """Return SQuAD's F1 of a prediction, from 0 to 1.

    F1 is the best overlap of its words with those of an accepted answer.
    """
    said = _words(prediction)
    best = 0.0
    for answer in gold:
        wanted = _words(answer)
        common = sum((Counter(said) & Counter(wanted)).values())
        # SQuAD's script: where one side has no words, F1 is 1 if both have none, else 0.
        if not said or not wanted:
            best = max(best, float(said == wanted))
        elif common:
            best = max(best, 2 * common / (len(said) + len(wanted)))
    return best


def _plain(text: str) -> str:
    # SQuAD's script takes the signs out and puts no blank in their place: `1,234` is `1234`.
    text = text.lower().translate(_PUNCTUATION)
    if not text.isascii():
        # As MLQA's script does for all languages.
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    return " ".join(_ARTICLE.sub(" ", text).split())


def _words(text: str) -> list[str]:
    """Return the words of an answer; of scripts without blanks each character, as in MLQA's script."""
    plain = _plain(text)
    return plain.split() if plain.isascii() else tokenize(plain)


def _same_words(one: str, other: str) -> bool:
    if one.isascii() and other.isascii():
        return False
    words = tokenize(one)
    return bool(words) and words == tokenize(other)


def final_answer(text: str) -> str:
    """Return the part of a written answer after its last `##Answer:`, or the whole text without that mark."""
    return text.rpartition(ANSWER_MARK)[2].strip() if ANSWER_MARK in text else text


def parse_answer(text: str) -> tuple[str | None, int | None]:
    """Return (author, post number) of a written answer such as `#3 Marta`. A missing part is None.

    Spaces, a closing full stop and further lines are ignored, because models sometimes write them.
    """
    lines = text.strip().splitlines()
    if not lines:
        return None, None
    match = _LABEL.match(lines[0])
    if match is None:
        return " ".join(lines[0].split()), None
    author = " ".join(match["author"].split())
    return author or None, int(match["number"])
