"""Quotations of an answer: are they verbatim, and are they from a document that holds the right answer?

No published script counts this. RAFT (arXiv:2403.10131) teaches answers that quote their document, and this
is the share of quotations that keep to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.prompts.answer_styles import quotations


@dataclass(frozen=True)
class QuotationCounts:
    """Counts of an answer's quoted spans.

    Attributes:
        spans: all quoted spans.
        verbatim: those that are in the prompt, character for character.
        right: those that are in a right document of the prompt, character for character.
    """

    spans: int
    verbatim: int
    right: int


def quotation_counts(answer: str, prompt: str, right: Sequence[str]) -> QuotationCounts:
    """Count the quoted spans of an answer. An empty span is in no text.

    Args:
        answer: the written answer, with its quotation marks.
        prompt: the prompt, with all its documents.
        right: the documents of the prompt that hold the right answer.
    """
    spans = quotations(answer)
    return QuotationCounts(
        len(spans),
        sum(bool(span) and span in prompt for span in spans),
        sum(any(span and span in text for text in right) for span in spans),
    )
