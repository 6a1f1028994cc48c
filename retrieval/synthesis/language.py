"""The language of texts (py3langid, a naive Bayes classifier over 140 languages: Lui and Baldwin, 2012)."""

from __future__ import annotations

from functools import cache
from typing import Any

#: Probability from which a language counts as certain, and below which it is ruled out. A question is short,
#: and related languages share words, so everything between says nothing.
CERTAIN, RULED_OUT = 0.8, 0.05
#: Characters that are enough to tell the language of a document.
ENOUGH = 2000


@cache
def _identifier() -> Any:
    # Here: the classifier takes seconds to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """Return the ISO 639 code of the most likely language of a text."""
    return _identifier().rank(text[:ENOUGH])[0][0]


def is_other_language(text: str, language: str) -> bool:
    """Return whether a text is certainly in another language than `language`."""
    ranked = _identifier().rank(text[:ENOUGH])
    probability = dict(ranked)
    return ranked[0][1] >= CERTAIN and probability.get(language, 1.0) <= RULED_OUT
