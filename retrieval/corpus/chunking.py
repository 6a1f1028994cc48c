"""Long documents in chunks: cut at sentence borders, measured in the model's own tokens, with offsets back.

A chunk is a `Document` of its own. Its id says where it lies, `guide@1200-1950`: characters of the text as
the source has it, before white space is folded. Its `parent` is the whole document, which stays the unit of
the split. A question that names a document asks about the chunks that hold its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrieval.corpus.types import Document, Question, Tally
from retrieval.text.normalize import fold, tokenize
from retrieval.text.token_counter import load_counter

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Chunker:
    """Cuts a text into spans [start, end) of at most `tokens` tokens, white space at their ends left out."""

    split: Callable[[str], Spans]
    tokens: int


def load_chunker(tokenizer: Path, tokens: int, overlap: int = 0) -> Chunker:
    """The chunker of a model folder's tokenizer; `tokens` and `overlap` are counted in its tokens.

    Raises:
        InputError: the folder has no readable tokenizer.
    """
    from semantic_text_splitter import TextSplitter

    counter = load_counter(tokenizer)
    if counter.fast is not None:
        splitter = TextSplitter.from_huggingface_tokenizer(counter.fast, tokens, overlap)
    else:
        splitter = TextSplitter.from_callback(counter.count, tokens, overlap)

    def split(text: str) -> Spans:
        return [(start, start + len(chunk)) for start, chunk in splitter.chunk_indices(text)]

    return Chunker(split, tokens)


def chunk_document(document: Document, raw: str, chunker: Chunker) -> list[Document]:
    """The chunks of a document whose unfolded text is `raw`; the document itself where it is one chunk."""
    spans = [span for span in chunker.split(raw) if raw[span[0] : span[1]].strip()]
    if len(spans) < 2:
        return [document]
    return [
        replace(
            document,
            id=f"{document.id}@{start}-{end}",
            text=fold(raw[start:end]),
            parent=document.id,
            start=start,
            end=end,
        )
        for start, end in spans
    ]


def holding_chunks(question: Question, chunks: Sequence[Document]) -> list[Document]:
    """Those of one document's chunks that hold the answer: by its place if the source names it, else by its
    words; none where it stands in no chunk.
    """
    if question.span is not None:
        low, high = question.span
        found = [chunk for chunk in chunks if chunk.start <= low and high <= chunk.end]
        if found:
            return found
    wanted = [words for answer in question.answers if (words := _words(answer)).strip()]
    return [chunk for chunk in chunks if any(answer in _words(chunk.text) for answer in wanted)]


def ask_about_chunks(
    questions: Iterable[Question], chunks: Mapping[str, Sequence[Document]], tally: Tally
) -> Iterator[Question]:
    """The questions with chunks as their oracles; `chunks` maps a whole document's id to its chunks.

    Any chunk that holds the answer is enough; where none does (an answer of one's own words), any chunk of
    the document counts. Of several documents that are needed together, each gives the first such chunk.
    `context_id` goes on naming the whole document, so that its chunks stay on one side of the split.
    """
    for question in questions:
        oracles: list[str] = []
        cut = False
        for name in question.oracle_ids:
            parts = chunks[name]
            held = holding_chunks(question, parts) if len(parts) > 1 else []
            if len(parts) > 1:
                cut = True
                tally.read["documents_asked_by_chunk" if held else "documents_asked_as_a_whole"] += 1
            candidates = held or parts
            oracles += [chunk.id for chunk in (candidates[:1] if question.oracles else candidates)]
        if cut:
            question = replace(question, oracles=tuple(oracles), needs_all=bool(question.oracles))
        yield question


def _words(text: str) -> str:
    return f" {' '.join(tokenize(text))} "
