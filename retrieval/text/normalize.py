"""Normalise texts: white space, line breaks, the words and stems of an index, and hashes of texts."""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Literal, get_args

from jora_core.base.errors import InputError
from retrieval.text.words import RULE, index_terms, tokenize

#: The stemmers of Snowball by language; "porter" is its older stemmer of English.
Stemmer = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto",
    "estonian", "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish",
    "italian", "lithuanian", "nepali", "norwegian", "persian", "polish", "porter", "portuguese", "romanian",
    "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
]  # fmt: skip
STEMMERS: tuple[Stemmer, ...] = get_args(Stemmer)

Diacritics = Literal["keep", "fold"]

#: Characters without a meaning in a text, as a part of a regular expression: controls other than white space,
#: byte order marks, soft hyphens, and code points that are no characters.
NOISE = "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff\ufffe\uffff"
_NOISE = re.compile(f"[{NOISE}]")
_BREAK = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")


def fold(text: str) -> str:
    """Return a text as one line: each run of white space is one space, and none is at the ends.

    Control characters, which PDF readers and old exports leave, are removed.
    """
    # The only printable white space is the blank. These checks are much faster than splitting and joining,
    # and nearly all texts pass them.
    if text.isprintable() and "  " not in text:
        return text.strip(" ")
    folded = " ".join(text.split())
    return folded if folded.isprintable() else " ".join(_NOISE.sub("", text).split())


def composed(name: str) -> str:
    """Return a name whose accents are part of their letters (NFC), as keyboards and most systems write them.

    macOS gives names of files with the accents apart (NFD), which look the same.
    """
    return unicodedata.normalize("NFC", name)


def keep_lines(text: str) -> str:
    """Return a text with its line breaks and the white space within its lines.

    Lines end with `\\n` and without blanks, at most one blank line separates two lines, and there is none at
    the ends. Control characters are removed. A text of one line is folded.
    """
    # A printable text has no line breaks. Of the ends, only whole lines go: the first line keeps its
    # indentation.
    if text.isprintable() or _BREAK.search(text.strip()) is None:
        return fold(text)
    lines: list[str] = []
    for line in _NOISE.sub("", text).splitlines():
        line = line.rstrip()
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).rstrip("\n")


def answer_text(text: str) -> str:
    """Return an answer with its line breaks, and without the indentation that all of its lines share."""
    kept = keep_lines(text)
    # `dedent` searches three times, and a single line needs none of it.
    return (dedent(kept) if "\n" in kept else kept).strip()


def one_paragraph(text: str) -> str:
    """Return a text with its line breaks but without blank lines, which separate the parts of a prompt."""
    # `keep_lines` leaves at most one blank line between two lines.
    return keep_lines(text).replace("\n\n", "\n")


@dataclass(frozen=True)
class Tokenizer:
    """A splitter of texts into the terms of an index, which reduces words to their stems if a stemmer is set.

    An index keeps its tokenizer for the queries. A tokenizer can be pickled and used by several threads.

    Attributes:
        stemmer: the Snowball stemmer. Its language also decides the letter case: Turkish has two letters i.
        diacritics: "fold" drops diacritics, so that `cafe` finds `café`.

    Raises:
        InputError: the language has no Snowball stemmer.
    """

    stemmer: Stemmer = "none"
    diacritics: Diacritics = "keep"
    # A Snowball stemmer must not be used by two threads at once, so each thread has its own. Stems are
    # remembered, because words repeat.
    _local: threading.local = field(
        default_factory=threading.local, init=False, repr=False, compare=False, hash=False
    )
    _stems: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.stemmer not in STEMMERS:
            raise InputError(f"bm25_stemmer: {self.stemmer!r} is unknown; expected {', '.join(STEMMERS)}")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Stemmer, Diacritics]]:
        # Thread-local storage cannot be pickled, and Dask workers get tokenizers by pickle.
        return Tokenizer, (self.stemmer, self.diacritics)

    def settings(self) -> dict[str, str]:
        """Return the settings that decide the words, as JSON values. A saved index stores them."""
        return {"words": RULE, "stemmer": self.stemmer, "diacritics": self.diacritics}

    def words(self, text: str) -> list[str]:
        """Return the terms of a document or query before stemming."""
        return index_terms(text, self.stemmer, self.diacritics == "fold")

    def __call__(self, text: str) -> list[str]:
        """Return the terms of a document or query."""
        words = self.words(text)
        return words if self.stemmer == "none" else [self.stem(word) for word in words]

    def stem(self, word: str) -> str:
        """Return the stem of one term of `words`."""
        if self.stemmer == "none":
            return word
        found = self._stems.get(word)
        if found is None:
            if len(self._stems) >= 1 << 20:  # a bound on memory
                self._stems.clear()
            found = self._stems[word] = self._snowball()(word)
        return found

    def _snowball(self) -> Callable[[str], str]:
        made = getattr(self._local, "stem", None)
        if made is None:
            # Here: without a stemmer the library is not needed.
            from Stemmer import Stemmer as Snowball

            made = self._local.stem = Snowball(self.stemmer, 0).stemWord
        return made


def duplicate_key(*texts: str) -> bytes:
    """Return a digest of texts that ignores case, spacing, punctuation and Unicode form."""
    # A text without words (such as `???`) is compared unchanged, because otherwise all such texts were equal.
    normal = "\n".join(" ".join(tokenize(text)) or text for text in texts)
    # hashlib, not jora_core.base.digests: raw bytes, of text that may hold half of a surrogate pair.
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()[:16]


def seeded_hash(seed: int, *parts: str) -> int:
    """Return a 64-bit hash of a seed and names.

    The hash is the same on every machine, unlike Python's own `hash`.
    """
    name = "\0".join([str(seed), *parts]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big")


def seeded_share(seed: int, *parts: str) -> float:
    """Return `seeded_hash` scaled to a number in [0, 1)."""
    # A float has 53 bits: with all 64, rounding could give 1.
    return (seeded_hash(seed, *parts) >> 11) / 2**53
