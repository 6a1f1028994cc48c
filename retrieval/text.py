"""Text as the indexes and the guards see it: folding, tokens, duplicate keys, seeded hashes."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_WORD = re.compile(r"\w+")


def fold(text: str) -> str:
    """White space of every kind as single spaces, none at the ends."""
    return " ".join(text.split())


def tokenize(text: str) -> list[str]:
    """Words of index and query alike: NFKC, case folded, runs of letters, digits and `_`."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


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
