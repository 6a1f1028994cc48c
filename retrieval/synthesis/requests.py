"""The requests to a teacher: the documents in chunks, and one prompt for each chunk or pair of chunks.

Everything here follows from the documents and the settings. The name of a request is the digest of its
prompt, so an unchanged chunk has the same request in a changed corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_core.base.digests import json_digest
from jora_core.base.errors import InputError
from retrieval.corpus.chunking import load_chunker
from retrieval.corpus.mapped_items import Items, write_items
from retrieval.corpus.tokenizer_folder import tokenizer_folder
from retrieval.corpus.types import Document, Tally
from retrieval.evaluation.task_report import Progress
from retrieval.guards.splits import split_of
from retrieval.readers.documents.documents import stream_documents, tells_instructions
from retrieval.settings.context import ContextConfig
from retrieval.settings.document_layouts import DOCUMENT_LAYOUTS
from retrieval.settings.synthesis.question_generation import Kind, QuestionGeneration
from retrieval.settings.tasks import QaTask
from retrieval.synthesis.prompts import messages
from retrieval.tasks.qa.inputs import document_survey
from retrieval.tasks.task_index import counted
from retrieval.text.normalize import seeded_hash
from retrieval.text.token_counter import load_counter
from retrieval.text.words import tokenize

CHUNKS, REQUESTS = "chunks.arrow", "requests.arrow"
#: Words of a chunk that something can be asked about; headings and page numbers have fewer.
FEWEST_WORDS = 8
#: Tokens of a word, where no tokenizer is configured, and of what a server puts around the two messages.
TOKENS_OF_WORD, TOKENS_OF_FRAME = 4 / 3, 10


@dataclass(frozen=True)
class TeacherRequest:
    """One request to a teacher.

    Attributes:
        id: SHA-256 of the prompt.
        document_id: the whole document.
        chunk_ids: the chunk, or the two neighbouring chunks of a comparison.
        system: the system message.
        user: the user message.
        kinds: the kinds of questions that it asks for.
        tokens: number of tokens of the prompt, counted or estimated.
    """

    id: str
    document_id: str
    chunk_ids: tuple[str, ...]
    system: str
    user: str
    kinds: tuple[str, ...]
    tokens: int


def write_requests(config: ContextConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Read and cut the documents, and write the chunks and the requests about them.

    Args:
        config: the configuration, with `qa.generate`.
        folder: folder of the two files.
        progress: receives (step, done, total) while the work advances.

    Returns:
        Counts of documents, chunks and requests, and what was left out by reason.

    Raises:
        InputError: a source is missing, broken or empty, or nothing can be asked.
    """
    task, settings = _settings(config)
    tally = Tally()
    chunker = None
    if task.chunk_tokens is not None:
        chunker = load_chunker(tokenizer_folder(config), task.chunk_tokens, task.chunk_overlap)
    survey = document_survey(task)
    tally.dropped.update(survey.left_out)
    if task.format == "auto" and tells_instructions(survey.files[0]):
        raise _no_documents()
    found = counted(
        stream_documents(survey.files, tally, chunker, task.format), "questions: read documents", progress
    )
    chunks = write_items(folder / CHUNKS, Document, found)
    left_out = Counter(tally.dropped)
    chosen = _chosen(config, settings, task, chunks, left_out)
    count = _count_tokens(config)
    with_reasons = task.answer_style == "reasoned"
    seen: set[str] = set()

    def requests() -> Iterator[TeacherRequest]:
        for places, kinds in _groups(chunks, chosen, settings.kinds, left_out):
            parts = [chunks[place] for place in places]
            system, user = messages(
                parts[0].title,
                [part.text for part in parts],
                kinds,
                settings.questions_per_chunk,
                with_reasons,
            )
            name = json_digest([system, user])
            # Equal texts, such as a licence in each file, are asked about once.
            if name in seen:
                left_out["request_repeated"] += 1
                continue
            seen.add(name)
            tokens = count(system) + count(user) + TOKENS_OF_FRAME
            ids = tuple(part.id for part in parts)
            yield TeacherRequest(name, parts[0].context_id, ids, system, user, tuple(kinds), tokens)

    made = counted(requests(), "questions: write prompts", progress, len(chosen))
    written = write_items(folder / REQUESTS, TeacherRequest, made)
    if not len(written):
        reasons = ", ".join(f"{count:,} {name}" for name, count in sorted(left_out.items())) or "none"
        raise InputError(
            f"context.qa.generate: nothing can be asked about {len(chunks):,} chunks (left out: {reasons})"
        )
    return {
        "documents": tally.read["documents"],
        "chunks": len(chunks),
        "chunks_asked": len(chosen),
        "requests": len(written),
        "prompt_tokens": sum(written.column("tokens")),
        "questions_asked": sum(map(len, written.column("kinds"))) * settings.questions_per_chunk,
        "left_out": {name: int(number) for name, number in sorted(left_out.items()) if number},
    }


def _settings(config: ContextConfig) -> tuple[QaTask, QuestionGeneration]:
    task = config.qa
    if task is None or task.generate is None:
        raise InputError(
            "context.qa.generate is not given; add it, with a teacher, to make questions about documents"
        )
    if task.format != "auto" and DOCUMENT_LAYOUTS[task.format].instructions:
        raise _no_documents()
    return task, task.generate


def _no_documents() -> InputError:
    return InputError(
        "context.qa.source holds instructions with answers, so no documents to ask about; leave generate out"
    )


def _chosen(
    config: ContextConfig,
    settings: QuestionGeneration,
    task: QaTask,
    chunks: Items[Document],
    left_out: Counter[str],
) -> list[int]:
    """Return the places of the chunks that are asked about, in their order."""
    # Where the documents' time decides, the split is known only with all questions: the build drops then.
    by_hash = task.split == "context" and not settings.held_out
    found = []
    for place, chunk in enumerate(chunks):
        if by_hash and split_of(config.seed, chunk.context_id, config.test_share) == "test":
            left_out["chunk_of_held_out_document"] += 1
        elif len(tokenize(chunk.text)) < FEWEST_WORDS:
            left_out["chunk_too_short"] += 1
        else:
            found.append(place)
    if settings.max_chunks is not None and len(found) > settings.max_chunks:
        left_out["chunk_over_max_chunks"] += len(found) - settings.max_chunks
        # By id: another document in the corpus changes few of the draws.
        ids = {place: chunks.value("id", place) for place in found}
        found = sorted(found, key=lambda place: seeded_hash(settings.seed, "asked", ids[place]))
        found = sorted(found[: settings.max_chunks])
    return found


def _groups(
    chunks: Items[Document], chosen: Sequence[int], kinds: Sequence[Kind], left_out: Counter[str]
) -> Iterator[tuple[tuple[int, ...], Sequence[Kind]]]:
    """Yield the places of the chunks of each request, and the kinds that it asks for."""
    single: list[Kind] = [kind for kind in kinds if kind != "comparison"]
    pair: list[Kind] = ["comparison"]
    for place in chosen:
        if single:
            yield (place,), single
        if "comparison" not in kinds:
            continue
        # Of one document: a pair across documents would ask again when the other one changes.
        after = place + 1
        document = chunks.value("parent", place)
        if document and after < len(chunks) and chunks.value("parent", after) == document:
            yield (place, after), pair
        else:
            left_out["comparison_without_a_second_chunk"] += 1


def _count_tokens(config: ContextConfig) -> Callable[[str], int]:
    if config.counts_tokens and config.tokenizer:
        return load_counter(tokenizer_folder(config)).count
    return lambda text: round(len(tokenize(text)) * TOKENS_OF_WORD)
