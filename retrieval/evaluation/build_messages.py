"""Say in short lines what a build left out, and what looks wrong with its corpus."""

from __future__ import annotations

from collections.abc import Mapping

from retrieval.text.labels import plural
from retrieval.text.left_out import counted_reasons

#: Query terms from which on their shares say something about the language.
ENOUGH_TERMS = 50
#: Shares of query terms above which a warning is given. English questions have 0.02 to 0.2, and 0.05.
MOST_UNKNOWN = 0.5
MOST_SINGLE = 0.3
#: The count of documents that the embedder reads in part, among what was read.
CUT_BY_EMBEDDER = "documents_longer_than_the_embedder_reads"


def left_out_line(task: str, dropped: Mapping[str, int]) -> str:
    """Return one line about everything that a task left out, by reason; "" if that is nothing."""
    said = counted_reasons(dropped)
    return f"{task}: left out: {said}" if said else ""


def warnings(
    terms: Mapping[str, int], read: Mapping[str, int], records: Mapping[str, int], contexts: int
) -> list[str]:
    """Return warnings about a corpus that its retriever does not fit, or of which nothing is held out.

    Args:
        terms: counts of the terms of all questions: `query`, and of these `unknown` to the index and `single`
            characters.
        read: counts of what was read.
        records: number of records by split.
        contexts: number of contexts of the training split.
    """
    out = []
    # Said here, because evaluation refuses it only after the training.
    if records.get("train", 0) and not records.get("test", 0):
        out.append(
            f"no records are held out ({plural(contexts, 'context')} in all), so evaluation "
            "would have nothing to score; raise test_share, or cut long conversations by block"
        )
    if cut := read.get(CUT_BY_EMBEDDER, 0):
        out.append(
            f"{cut:,} documents are longer than the embedder reads, which ignores their rest; chunk_tokens "
            "cuts documents"
        )
    total = terms.get("query", 0)
    if total < ENOUGH_TERMS:
        return out
    unknown, single = terms.get("unknown", 0) / total, terms.get("single", 0) / total
    if unknown > MOST_UNKNOWN:
        out.append(
            f"{unknown:.0%} of the questions' words are in no document: are both in one language? "
            "(context.bm25_stemmer finds other forms of a word, a dense leg finds by meaning)"
        )
    if single > MOST_SINGLE:
        out.append(
            f"{single:.0%} of the questions' words are single characters: the text is split in a way that "
            "BM25 does not know"
        )
    return out
