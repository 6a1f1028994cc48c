"""Cut long documents into chunks at sentence borders. Lengths are tokens of the configured tokenizer.

A chunk is a `Document`. Its id names its range of characters: `guide@1200-1950` counts them in the text of
the source, before it is tidied. The `parent` of a chunk is the whole document. The split is decided
for the whole document, so that its chunks stay together. A question about a document becomes a question about
the chunks that hold its answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrieval.corpus.types import Document, Question, Tally
from retrieval.text.normalize import keep_lines
from retrieval.text.supporting_facts import sentence_places
from retrieval.text.token_counter import load_counter
from retrieval.text.words import tokenize

#: (start, end) in characters, end exclusive.
Spans = list[tuple[int, int]]
# Longer than any sentence without a blank, and short enough for the splitter: 0.05 s.
_UNBROKEN = re.compile(r"[^\s.!?。！？]{2000}")


@dataclass(frozen=True)
class Chunker:
    """A splitter of texts into spans of at most `tokens` tokens. No span has white space at its ends."""

    split: Callable[[str], Spans]
    tokens: int


def load_chunker(tokenizer: Path, tokens: int, overlap: int = 0) -> Chunker:
    """Load the tokenizer of a model folder and make a chunker that counts its tokens.

    Args:
        tokenizer: folder of the tokenizer.
        tokens: the maximum length of a chunk in tokens.
        overlap: the maximum number of tokens that neighbouring chunks share.

    Raises:
        InputError: the folder has no readable tokenizer.
    """
    # Here: this module is imported by builds that cut nothing.
    from semantic_text_splitter import TextSplitter

    counter = load_counter(tokenizer)
    # The splitter calls a fast tokenizer from Rust, without a Python call for each piece of text.
    if counter.fast is not None:
        splitter = TextSplitter.from_huggingface_tokenizer(counter.fast, tokens, overlap)
    else:
        splitter = TextSplitter.from_callback(counter.count, tokens, overlap)

    def split(text: str) -> Spans:
        return [
            (first + start, first + start + len(chunk))
            for first, part in _parts(text)
            for start, chunk in splitter.chunk_indices(part)
        ]

    return Chunker(split, tokens)


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield (first character, part) of a text, cut within runs that no word or sentence ends.

    A picture in base64 of 300,000 characters is such a run. The splitter's time grows with its square.
    """
    first = 0
    for run in _UNBROKEN.finditer(text):
        yield first, text[first : run.end()]
        first = run.end()
    yield first, text[first:]


def chunk_document(document: Document, raw: str, chunker: Chunker) -> list[Document]:
    """Cut a document into chunks.

    Args:
        document: the whole document.
        raw: the text of the document in its source.
        chunker: the splitter.

    Returns:
        The chunks, or the document itself if it is not longer than one chunk.
    """
    # The raw text is cut, because line ends and headings, which folding removes, are the best borders.
    spans = [span for span in chunker.split(raw) if raw[span[0] : span[1]].strip()]
    # The id of a document that is not cut does not change, so `oracle_ids` of the source stay valid.
    if len(spans) < 2:
        return [document]
    sentences = [document.text[low:high] if low >= 0 else "" for low, high in document.sentences]
    chunks = []
    for start, end in spans:
        text = keep_lines(raw[start:end])
        chunks.append(
            replace(
                document,
                id=f"{document.id}@{start}-{end}",
                text=text,
                parent=document.id,
                start=start,
                end=end,
                sentences=sentence_places(sentences, text),
            )
        )
    return chunks


def holding_chunks(question: Question, chunks: Sequence[Document]) -> list[Document]:
    """Return those of one document's chunks that hold the answer of a question.

    The answer is found by its character span if the source has one, else by its words. The list is empty if
    no chunk holds the answer.
    """
    if question.span is not None:
        low, high = question.span
        # With an overlap, several chunks may hold the whole span. An answer across a border is in none; then
        # its words are searched.
        found = [chunk for chunk in chunks if chunk.start <= low and high <= chunk.end]
        if found:
            return found
    # An answer of signs alone has no words, and "" would be found everywhere.
    wanted = [words for answer in question.answers if (words := _words(answer)).strip()]
    return [chunk for chunk in chunks if any(answer in _words(chunk.text) for answer in wanted)]


def with_chunk_oracles(
    questions: Iterable[Question], chunks: Mapping[str, Sequence[Document]], tally: Tally
) -> Iterator[Question]:
    """Replace the whole documents that are the oracles of questions by chunks of these documents.

    One chunk that holds the answer is enough. If none does (a free answer that quotes nothing), any chunk of
    the document counts. If several documents are needed together, each contributes the first such chunk.
    `context_id` still names the whole document, so that its chunks stay on one side of the split.

    Args:
        questions: questions about whole documents.
        chunks: the chunks of each whole document, by its id.
        tally: counts the documents with questions about a chunk, and those with questions about the whole.
    """
    for question in questions:
        oracles: list[str] = []
        cut = False
        for name in question.oracle_ids:
            parts = chunks[name]
            holding = holding_chunks(question, parts) if len(parts) > 1 else []
            if len(parts) > 1:
                cut = True
                tally.read["documents_asked_by_chunk" if holding else "documents_asked_as_a_whole"] += 1
            candidates = holding or parts
            oracles += [chunk.id for chunk in (candidates[:1] if question.oracles else candidates)]
        if cut:
            question = replace(question, oracles=tuple(oracles), needs_all=bool(question.oracles))
        yield question


def _words(text: str) -> str:
    """Return the words joined by single spaces, with a space at each end, so that `in` matches whole words
    only.
    """
    return f" {' '.join(tokenize(text))} "
