"""Exact match and F1 of SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822), as their scripts count them.

Both scripts compare normalised texts: in lower case, without the ASCII punctuation signs (nothing takes their
place), without the words `a`, `an` and `the`, and with single blanks. Other punctuation, such as `—` or `’`,
stays, and other spellings of a letter are other letters.

The versions differ where a normalised text is empty:

    1.1  F1 of two empty texts is 0. Every question has an answer.
    2.0  F1 of two empty texts is 1. Accepted answers that are empty after normalising do not count. If none
         is left, the question has no answer, and only an empty prediction is right.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Literal

from retrieval.evaluation.measures.precision_recall import of_words

Version = Literal["1.1", "2.0"]

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation))


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and articles, with single blanks."""
    # In this order: `U.S.A` becomes `usa` before articles are looked for, so its A is no article.
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: Sequence[str], version: Version = "2.0") -> bool:
    """Return whether a prediction equals an accepted answer after normalising.

    Args:
        prediction: the answer to score; "" says that there is no answer.
        gold: accepted answers; none if the question has no answer (2.0 only).
        version: version of the script.

    Raises:
        ValueError: version 1.1 without an accepted answer.
    """
    said = normalize_answer(prediction)
    return any(said == answer for answer in _accepted(gold, version))


def f1(prediction: str, gold: Sequence[str], version: Version = "2.0") -> float:
    """Return the F1 of a prediction's words, from 0 to 1: the best one over the accepted answers.

    Args:
        prediction: the answer to score; "" says that there is no answer.
        gold: accepted answers; none if the question has no answer (2.0 only).
        version: version of the script.

    Raises:
        ValueError: version 1.1 without an accepted answer.
    """
    said = normalize_answer(prediction).split()
    best = 0.0
    for answer in _accepted(gold, version):
        wanted = answer.split()
        if version == "2.0" and not (said and wanted):
            best = max(best, float(said == wanted))
        else:
            best = max(best, of_words(said, wanted).f1)
    return best


def _accepted(gold: Sequence[str], version: Version) -> list[str]:
    """Return the accepted answers, normalised; one empty text if the question has no answer."""
    answers = [normalize_answer(answer) for answer in gold]
    if version == "1.1":
        if not answers:
            raise ValueError("SQuAD 1.1 has an answer to every question; take version 2.0")
        return answers
    return [answer for answer in answers if answer] or [""]
