"""Text as the indexes and the guards see it: folding, tokens, duplicate keys, seeded hashes."""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from jora_core.base.errors import InputError

#: Snowball's languages; "porter" is its first English stemmer.
Stemmer = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto",
    "estonian", "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish",
    "italian", "lithuanian", "nepali", "norwegian", "persian", "polish", "porter", "portuguese", "romanian",
    "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
]  # fmt: skip
STEMMERS: tuple[Stemmer, ...] = get_args(Stemmer)

_WORD = re.compile(r"\w+")


def fold(text: str) -> str:
    """White space of every kind as single spaces, none at the ends."""
    return " ".join(text.split())


def tokenize(text: str) -> list[str]:
    """Words of index and query alike: NFKC, case folded, runs of letters, digits and `_`."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


@dataclass(frozen=True)
class Tokenizer:
    """`tokenize`, then each word's stem if one is asked for; an index keeps its own for the queries.

    May be used from several threads, and pickled.

    Raises:
        InputError: the language has no Snowball stemmer.
    """

    stemmer: Stemmer = "none"
    # Snowball's objects are not for several threads at once; stems are remembered, for words repeat.
    _local: threading.local = field(
        default_factory=threading.local, init=False, repr=False, compare=False, hash=False
    )
    _stems: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.stemmer not in STEMMERS:
            raise InputError(f"bm25_stemmer: {self.stemmer!r} is unknown; expected {', '.join(STEMMERS)}")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Stemmer]]:
        return Tokenizer, (self.stemmer,)

    def settings(self) -> dict[str, str]:
        """What decides the words, as JSON values."""
        return {"words": f"nfkc casefold {_WORD.pattern}", "stemmer": self.stemmer}

    def __call__(self, text: str) -> list[str]:
        """Words of index and query alike."""
        words = tokenize(text)
        return words if self.stemmer == "none" else [self.stem(word) for word in words]

    def stem(self, word: str) -> str:
        """The stem of one word as `tokenize` gives it."""
        if self.stemmer == "none":
            return word
        found = self._stems.get(word)
        if found is None:
            if len(self._stems) >= 1 << 20:
                self._stems.clear()
            found = self._stems[word] = self._snowball()(word)
        return found

    def _snowball(self) -> Callable[[str], str]:
        made = getattr(self._local, "stem", None)
        if made is None:
            from Stemmer import Stemmer as Snowball

            made = self._local.stem = Snowball(self.stemmer, 0).stemWord
        return made


def duplicate_key(*texts: str) -> bytes:
    """A digest that is equal for texts that differ only in case, spacing, punctuation or Unicode form."""
    normal = "\n".join(" ".join(tokenize(text)) or text for text in texts)
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()[:16]


def seeded_hash(seed: int, *parts: str) -> int:
    """A 64-bit hash of the seed and names: the same on every machine, unlike Python's own `hash`."""
    name = "\0".join([str(seed), *parts]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big")


def seeded_share(seed: int, *parts: str) -> float:
    """`seeded_hash` as a number in [0, 1)."""
    return (seeded_hash(seed, *parts) >> 11) / 2**53
