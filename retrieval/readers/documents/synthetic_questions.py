"""Questions that a teacher model made (`questions.parquet` of the stage `make-questions`).

Each names the chunks that it is about, so nothing is searched: a chunk is right because the question was made
of it. Neighbouring chunks that overlap and hold the same evidence are right as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Document, Question, Tally
from retrieval.readers.files.rows import rows, text_of, text_or_empty, texts_of

FIELDS = ("id", "question", "answers", "document_id", "chunk_ids", "evidence", "reasoned")
EXPECTED = "a row of a file that the stage make-questions wrote"


def read_synthetic_questions(
    files: Sequence[SourceFile], chunks: Mapping[str, Sequence[Document]], tally: Tally
) -> Iterator[Question]:
    """Read made questions about the chunks of a corpus.

    Args:
        files: the files.
        chunks: the chunks of each whole document, by its id.
        tally: `read["questions_synthetic"]` counts the questions.

    Raises:
        InputError: a file is no such file, or a question is about a chunk that the corpus does not have.
    """
    for file in files:
        for where, row, value in rows(file, FIELDS, (), EXPECTED):
            document = text_of(value["document_id"], "document_id", where)
            named = texts_of(value["chunk_ids"], "chunk_ids", where)
            known = {chunk.id: chunk for chunk in chunks[document]} if document in chunks else {}
            missing = next((name for name in named if name not in known), None)
            if missing is not None or not named:
                raise InputError(
                    f"{where}: the corpus has no chunk {missing or document!r}; the questions were made of "
                    "other documents, or with another chunk length: run the stage make-questions again"
                )
            tally.read["questions"] += 1
            tally.read["questions_synthetic"] += 1
            answers = texts_of(value["answers"], "answers", where)
            if not answers:
                tally.read["questions_unanswerable"] += 1
            evidence = text_or_empty(value["evidence"], "evidence", where)
            oracles = tuple(named)
            if len(named) == 1 and evidence:
                own = known[named[0]]
                oracles = tuple(name for name, chunk in known.items() if _overlap(chunk, own, evidence))
            yield Question(
                text_of(value["id"], "id", where),
                document,
                text_of(value["question"], "question", where),
                answers,
                file.name,
                row,
                oracles,
                known[named[0]].time,
                needs_all=len(named) > 1,
                reasoned=text_or_empty(value["reasoned"], "reasoned", where),
                synthetic=True,
            )


def _overlap(chunk: Document, own: Document, evidence: str) -> bool:
    """Return whether a chunk is the question's own, or overlaps it and holds its evidence."""
    near = chunk.start < own.end and own.start < chunk.end
    return chunk.id == own.id or (near and evidence in chunk.text)
