"""Denotation accuracy of WikiTableQuestions (Pasupat and Liang 2015), by the rules of its evaluator 1.0.2.

A denotation is a set of values: texts, numbers and dates. A prediction is right if it has as many values as
the right answer and each right value matches a predicted one, as a normalised text, a number or a date.

The evaluator gets the numbers and dates of right answers from the data set's `tagged` files (`targetCanon`),
where `1,000` is 1000.0 and `May 1990` is 1990-05-xx. Without them, only the text of a right answer is known.
Then a text that is a number with grouped digits or a typographic minus still counts as that number.
Predictions are read as the evaluator reads its files: `1000`, `1e3` and `1990-05-xx` are a number and a date,
`1,000` is a text.

One thing is ours: the evaluator gets the values of a prediction apart, but a model writes one line. It joins
values by `, `, which may also occur within a value, so every way to cut the line at `, ` is tried.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from retrieval.prompts.templates import ANSWER_SEPARATOR

TOLERANCE = 1e-6
#: Bounds on the search for a cut of a generated list: an answer of a broken model may be thousands of commas,
#: and the number of ways to cut a list is exponential in its length.
MAX_PIECES = 256
MAX_STATES = 10_000

_SIGNS = str.maketrans(dict.fromkeys("‘’´`", "'") | dict.fromkeys("“”", '"') | dict.fromkeys("‐‑‒–—−", "-"))
# Citation marks at the end (`[3]`, `*`, `#`), but not a bracket that is the whole text.
_CITATION = re.compile(r"(?:(?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])+$")
# A parenthesis at the end, such as `Oslo (Norway)`, but not one that is the whole text.
_DETAILS = re.compile(r"(?<!^)(?: \([^)]*\))+$")
_QUOTED = re.compile(r'^"([^"]*)"$')
# Thousands are separated by commas, or by blanks as in the SI; India groups by two digits.
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{2,3})*,\d{3}|(?:[ \u00a0\u202f]\d{3})+)(?:\.\d+)?")
_GROUP = re.compile("[, \u00a0\u202f]")


def normalize(text: str) -> str:
    """Return a text as the evaluator compares it.

    It has no diacritics, no citation or detail in parentheses at its end, no quotation marks around it, no
    final full stop, plain quotes and dashes, lower case and single blanks.
    """
    # The marks that the evaluator removes are those of the category Mn, which are more than the accents:
    # vowel signs of Hindi and Thai are among them. The decomposition comes first: a spacing accent, as in
    # the two signs ´ and ¨, becomes a blank.
    decomposed = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").translate(_SIGNS)
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
    """A value of a denotation.

    Attributes:
        text: the normalised text.
        number: the number, if the value is one.
        date: (year, month, day), if the value is a date; -1 for an unknown part.
    """

    text: str
    number: float | None = None
    date: tuple[int, int, int] | None = None

    @property
    def identity(self) -> Hashable:
        """What makes two values one value of a set: the number or date if there is one, else the text."""
        if self.number is not None:
            return self.number
        return self.text if self.date is None else self.date

    def matches(self, other: Value) -> bool:
        """Return whether two values are equal as texts, as numbers, or as dates."""
        if self.text == other.text:
            return True
        if self.number is not None and other.number is not None:
            return abs(self.number - other.number) < TOLERANCE
        return self.date is not None and self.date == other.date


@lru_cache(maxsize=65536)
def predicted_value(text: str) -> Value:
    """Return a predicted answer as the evaluator reads it from a file."""
    return _value(text, text)


@lru_cache(maxsize=65536)
def right_value(text: str, canonical: str = "") -> Value:
    """Return a right answer as a value.

    Args:
        text: the answer as the data set has it.
        canonical: its canonical form, `targetCanon` of the tagged files; "": the text decides.
    """
    if canonical:
        return _value(text, canonical)
    plain = text.strip().translate(_SIGNS)
    return _value(text, _GROUP.sub("", plain) if _GROUPED.fullmatch(plain) else plain)


def _value(text: str, canonical: str) -> Value:
    form = normalize(text)
    number = _number(canonical)
    if number is not None:
        return Value(form, number=number)
    date = _date(canonical)
    if date is not None and date[1:] == (-1, -1):  # the evaluator takes a year alone for a number
        return Value(form, number=float(date[0]))
    return Value(form, date=date)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # `float` also reads "nan" and "inf", which are words in an answer, and in Python 3 `1_000`. The evaluator
    # is written in Python 2.
    if not math.isfinite(value) or "_" in text:
        return None
    # As in the evaluator, which cuts: 2.9999999 becomes 2.
    return float(int(value)) if abs(value - round(value)) < TOLERANCE else value


def _date(text: str) -> tuple[int, int, int] | None:
    parts = text.lower().split("-")
    if len(parts) != 3 or "_" in text:
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


def denotation_correct(
    prediction: str | Sequence[str], gold: Sequence[str], canonical: Sequence[str] | None = None
) -> bool:
    """Return whether a prediction has the same denotation as the right answer, in any order.

    Args:
        prediction: the predicted values, or one line of values joined by `, `.
        gold: the right values as texts.
        canonical: the canonical form of each right value; None: not known.

    Raises:
        ValueError: there is not one canonical form for each right value.
    """
    forms = canonical if canonical is not None else [""] * len(gold)
    targets = _set(right_value(text, form) for text, form in zip(gold, forms, strict=True))
    if not isinstance(prediction, str):
        return same_denotation(_set(map(predicted_value, prediction)), targets)
    pieces = prediction.strip().split(ANSWER_SEPARATOR)
    if len(pieces) > MAX_PIECES:
        return False
    # Counted before normalising, which may remove a part with commas.
    longest = max((answer.count(",") for answer in gold), default=0) + 2
    return _some_cut_is_right(pieces, targets, longest)


def same_denotation(predicted: Sequence[Value], targets: Sequence[Value]) -> bool:
    """Return whether two sets of values are of one size and each target matches a predicted value."""
    if len(predicted) != len(targets):
        return False
    return all(any(target.matches(value) for value in predicted) for target in targets)


def _set(values: Iterable[Value]) -> list[Value]:
    """Return the values without repeats; of equal ones the first stays."""
    found: dict[Hashable, Value] = {}
    for value in values:
        found.setdefault(value.identity, value)
    return list(found.values())


def _some_cut_is_right(pieces: list[str], targets: list[Value], longest: int) -> bool:
    """Return whether the pieces can be cut into runs that are a right prediction.

    A run has at most `longest` pieces. `reached[p]` holds the sets of values that cuts of the first `p`
    pieces give. A run that matches no target ends its cut: with as many values as targets, one that matches
    nothing leaves a target without its match.
    """
    reached: list[set[frozenset[Value]]] = [{frozenset()}] + [set() for _ in pieces]
    for start in range(len(pieces)):
        if not reached[start]:
            continue
        # A run of pieces longer than the answer with most commas can match nothing.
        for end in range(start + 1, min(start + longest, len(pieces)) + 1):
            value = predicted_value(ANSWER_SEPARATOR.join(pieces[start:end]))
            if any(target.matches(value) for target in targets):
                for values in reached[start]:
                    known = any(value.identity == other.identity for other in values)
                    if known or len(values) < len(targets):
                        reached[end].add(values if known else values | {value})
        # Not needed any more; this bounds the memory to `longest` sets.
        reached[start] = set()
        if len(reached[start + 1]) > MAX_STATES:  # only an adversary's lists of look-alikes get here
            return False
    return any(same_denotation(list(values), targets) for values in reached[-1])
