"""Normalise texts for the indexes and guards: folded white space, words, stems, and hashes of texts."""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from jora_core.base.errors import InputError

#: The stemmers of Snowball by language; "porter" is its older stemmer of English.
Stemmer = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto",
    "estonian", "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish",
    "italian", "lithuanian", "nepali", "norwegian", "persian", "polish", "porter", "portuguese", "romanian",
    "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
]  # fmt: skip
STEMMERS: tuple[Stemmer, ...] = get_args(Stemmer)

_WORD = re.compile(r"\w+")


def fold(text: str) -> str:
    """Return a text with each run of white space as one space, and none at the ends."""
    return " ".join(text.split())


def tokenize(text: str) -> list[str]:
    """Return the words of a text: runs of letters, digits and `_` after NFKC and case folding."""
    if not text.isascii():  # ASCII is NFKC already, and the check is much faster
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class Tokenizer:
    """A splitter of texts into words, which reduces each word to its stem if a stemmer is set.

    An index keeps its tokenizer for the queries. A tokenizer can be pickled and used by several threads.

    Raises:
        InputError: the language has no Snowball stemmer.
    """

    stemmer: Stemmer = "none"
    # A Snowball stemmer must not be used by two threads at once, so each thread has its own. Stems are
    # remembered, because words repeat.
    _local: threading.local = field(
        default_factory=threading.local, init=False, repr=False, compare=False, hash=False
    )
    _stems: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.stemmer not in STEMMERS:
            raise InputError(f"bm25_stemmer: {self.stemmer!r} is unknown; expected {', '.join(STEMMERS)}")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Stemmer]]:
        # Thread-local storage cannot be pickled, and Dask workers get tokenizers by pickle.
        return Tokenizer, (self.stemmer,)

    def settings(self) -> dict[str, str]:
        """Return the settings that decide the words, as JSON values. A saved index stores them."""
        return {"words": f"nfkc casefold {_WORD.pattern}", "stemmer": self.stemmer}

    def __call__(self, text: str) -> list[str]:
        """Return the words of a document or query."""
        words = tokenize(text)
        return words if self.stemmer == "none" else [self.stem(word) for word in words]

    def stem(self, word: str) -> str:
        """Return the stem of one word of `tokenize`."""
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
