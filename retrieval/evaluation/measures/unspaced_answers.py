"""Exact match and F1 of answers in scripts without blanks, by characters, in the style of MLQA.

MLQA's script (arXiv:1910.07475, language `zh`) removes every punctuation sign of Unicode and no articles.
Each ideograph from U+4E00 to U+9FA5 is then a word, and so is each run of other characters between blanks.
Here characters of all scripts without blanks are words (:mod:`retrieval.text.words` lists the scripts), each
with its marks. For answers whose unspaced characters are those ideographs, the numbers are those of MLQA's
script. CMRC 2018 (arXiv:1810.07366) counts another thing: the longest common run of characters.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

from retrieval.evaluation.measures.precision_recall import of_words
from retrieval.text.words import characters_and_runs


def segments(text: str) -> list[str]:
    """Return the words of an answer: characters in scripts without blanks, else runs between blanks."""
    kept = "".join(character for character in text.lower() if not _is_punctuation(character))
    return [piece for run in kept.split() for piece in characters_and_runs(run)]


def character_exact_match(prediction: str, gold: Sequence[str]) -> bool:
    """Return whether a prediction has the words of an accepted answer, in their order."""
    said = segments(prediction)
    return any(said == segments(answer) for answer in gold)


def character_f1(prediction: str, gold: Sequence[str]) -> float:
    """Return the F1 of a prediction's words, from 0 to 1: the best one over the accepted answers."""
    said = segments(prediction)
    return max((of_words(said, segments(answer)).f1 for answer in gold), default=0.0)


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
