"""Split texts of every script into words: one rule for indexes, guards, answers and quotations.

The rule is that of Unicode's word boundaries (UAX 29) where it matters for search: a combining mark stays
with its letter, so that `दिन` is one word. ASCII text is split into runs of letters, digits and `_`.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are written without blanks. There each character,
with its marks, is a word of its own for comparisons, and each pair of neighbours is a term of an index.

Spellings that mean the same word become one: compatibility forms (NFKC), letter case, digits of any script,
Arabic vowel marks, tatweel and forms of alef, Hebrew points, Greek accents, soft hyphens and joiners.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

#: Names the rule in saved indexes. A change of the words needs another name.
RULE = "uax29 nfkc casefold bigrams 1"

_WORD = re.compile(r"\w+")
# Other than Latin and Cyrillic letters, dashes, quotation marks and the like, which need no more than NFKC
# and case folding.
_UNUSUAL = re.compile(
    "[^\0-\u00ac\u00ae-\u0130\u0132-\u02ff\u0400-\u0450\u0452-\u0482\u048a-\u052f\u2010-\u2027]"
)
#: Languages with a dotted and a dotless i, which are two letters there.
DOTLESS = frozenset({"turkish", "azerbaijani"})
_TURKISH_CASE = str.maketrans({"I": "ı", "İ": "i"})

_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}ー"
)
# Characters that are written or left out without a change of the word.
_IGNORED = frozenset("\u00ad\u200d\u2060\ufeff\u0640\u034f\u061c\u200e\u200f")
# Persian writes ZERO WIDTH NON-JOINER between the parts of a word, where others write a blank; in Indic
# scripts it only changes the form of a letter. A zero width space separates words.
_VARIANTS = {
    "\u200b": " ",
    "أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ی": "ي", "ک": "ك", "ة": "ه",
    "ά": "α", "έ": "ε", "ή": "η", "ί": "ι", "ό": "ο", "ύ": "υ", "ώ": "ω",
    "ϊ": "ι", "ΐ": "ι", "ϋ": "υ", "ΰ": "υ",
    "ё": "е", "ı": "i",
}  # fmt: skip
# Letters that have no decomposition but are written without their stroke where a keyboard lacks them.
_STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ħ": "h"})


class _Spelling(dict[int, "str | int"]):
    """The table for `str.translate`, filled with each character at its first use."""

    def __missing__(self, code: int) -> str | int:
        self[code] = found = _spelling(chr(code))
        return found


def _spelling(character: str) -> str | int:
    if character in _VARIANTS:
        return _VARIANTS[character]
    # Arabic and Hebrew vowel marks are left out in ordinary text, and variation selectors change no letter.
    code = ord(character)
    vowel = 0x064B <= code <= 0x065F or code == 0x0670 or 0x0591 <= code <= 0x05C7
    if character in _IGNORED or (vowel and unicodedata.combining(character)) or 0xFE00 <= code <= 0xFE0F:
        return ""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return code


_SPELLING = _Spelling()


@cache
def _patterns() -> tuple[Any, Any, Any, Any]:
    """Return the patterns of the `regex` library, which knows scripts and marks."""
    # Here: configurations are read without this library.
    import regex

    rare = r"\p{M}\p{Cf}ёı\p{Script=Arabic}\p{Script=Greek}" + _UNSPACED
    return (
        regex.compile(rf"[{rare}]|(?![0-9])\p{{Nd}}"),
        regex.compile(r"[\p{L}\p{N}\p{M}_]+"),
        regex.compile(rf"[{_UNSPACED}]"),
        # A character with its marks, or a run of other characters.
        regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[^{_UNSPACED}]+"),
    )


def tokenize(text: str) -> list[str]:
    """Return the words of a text, for comparisons: of scripts without blanks, each character is a word."""
    if text.isascii():  # ASCII needs no normalising, and the check is much faster
        return _WORD.findall(text.casefold())
    text = _normal(text, "", False)
    if _is_plain(text):
        return _WORD.findall(text)
    return [piece for run in _runs(text, "") for piece in run]


def index_terms(text: str, language: str = "", fold_diacritics: bool = False) -> list[str]:
    """Return the terms of a text for an index: its words, and pairs of characters in scripts without blanks.

    Args:
        text: a document or query.
        language: the language's English name, for its letter case; "" for none in particular.
        fold_diacritics: whether letters lose their diacritics (`é` is `e`).
    """
    if text.isascii() and language not in DOTLESS:
        return _WORD.findall(text.casefold())
    text = _normal(text, language, fold_diacritics)
    if _is_plain(text):
        return _WORD.findall(text)
    return [term for run in _runs(text, language) for term in _pairs(run)]


def _pairs(run: list[str]) -> Iterator[str]:
    """Yield a run of one piece unchanged. Of a longer one, join neighbouring characters to pairs."""
    if len(run) == 1:
        yield run[0]
        return
    unspaced = _patterns()[2]
    single = [unspaced.match(piece) is not None for piece in run]
    for at, piece in enumerate(run):
        after = at + 1 < len(run) and single[at + 1]
        if not single[at]:
            yield piece
        elif after:
            yield piece + run[at + 1]
        elif not (at and single[at - 1]):
            yield piece


def _normal(text: str, language: str, fold_diacritics: bool) -> str:
    """Return a text after NFKC, case folding, and the removal of diacritics if it is asked for."""
    text = unicodedata.normalize("NFKC", text)
    if language in DOTLESS:
        text = text.translate(_TURKISH_CASE)
    text = text.casefold()
    if fold_diacritics:
        text = _without_diacritics(text)
    return text


def _is_plain(text: str) -> bool:
    """Return whether every run of letters, digits and `_` of a text is a word as it is."""
    # The first search is several times as fast, and tells nearly all texts in Latin script.
    return _UNUSUAL.search(text) is None or _patterns()[0].search(text) is None


def _runs(text: str, language: str) -> Iterator[list[str]]:
    """Yield the words of a text that is not plain, as lists of pieces, such as unspaced characters."""
    _, word, unspaced, pieces = _patterns()
    text = _respelt(text, language)
    for found in word.findall(text):
        yield pieces.findall(found) if unspaced.search(found) else [found]


def _respelt(text: str, language: str) -> str:
    """Return a text with one spelling for each word, after NFKC and case folding."""
    if "\u200c" in text:
        # Between Arabic letters it separates; elsewhere it only changes a form.
        text = re.sub(r"(?<=[\u0600-\u06ff])\u200c", " ", text).replace("\u200c", "")
    if language in DOTLESS:
        # The dotless i is a letter of its own there; everything else is respelt as usual.
        return "ı".join(part.translate(_SPELLING) for part in text.split("ı"))
    # Case folding leaves the dot of a capital İ as a mark.
    return text.replace("i\u0307", "i").translate(_SPELLING)


def _without_diacritics(text: str) -> str:
    """Return a text whose Latin, Greek and Cyrillic letters have lost their diacritics."""
    parts = unicodedata.normalize("NFD", text.translate(_STROKES))
    # Only these marks: those of Indic scripts are vowels.
    return unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", parts))


def is_unspaced(character: str) -> bool:
    """Return whether a character belongs to a script without blanks, or is a mark of its punctuation."""
    return "\u3000" <= character <= "\u303f" or _patterns()[2].match(character) is not None


def has_unspaced(text: str) -> bool:
    """Return whether a text has a character of a script without blanks."""
    return not text.isascii() and _patterns()[2].search(text) is not None


def characters_and_runs(text: str) -> list[str]:
    """Split a text into characters of scripts without blanks, each with its marks, and runs of others."""
    return [text] * bool(text) if text.isascii() else _patterns()[3].findall(text)


def unspaced_share(words: list[str]) -> float:
    """Return the share of words of `tokenize` that are single characters of scripts without blanks."""
    other = [word for word in words if not word.isascii()]
    if not other:
        return 0.0
    unspaced = _patterns()[2]
    return sum(unspaced.match(word) is not None for word in other) / len(words)
