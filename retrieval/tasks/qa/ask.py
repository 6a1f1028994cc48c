"""Prompts of new questions over documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.types import Question
from retrieval.evaluation.task_report import TaskReport
from retrieval.prompts import templates
from retrieval.search.dense.embedder import Embedder
from retrieval.settings.context import ContextConfig
from retrieval.tasks.asking import Asked, Inquiry, ShownText, asked_record
from retrieval.tasks.qa import instructions, questions
from retrieval.tasks.qa.record import RankedQuestion


def ask(
    config: ContextConfig, folder: Path, inquiries: Sequence[Inquiry], embedder: Embedder | None
) -> list[Asked]:
    """Return the prompts of questions, with the documents that the retriever finds for each.

    Args:
        config: the configuration of the task.
        folder: the task's prepared folder.
        inquiries: the questions.
        embedder: model of the dense leg; None without that leg.

    Raises:
        InputError: the source holds instructions, for which nothing is retrieved.
    """
    task = config.qa
    assert task is not None
    if instructions.is_prepared(folder):
        raise InputError(
            "context.qa holds instructions with answers, so no documents to find; use `jora generate`"
        )
    work = questions.open_work(config, folder)
    asked = [Question(one.id, "", one.text, ()) for one in inquiries]
    if work.dense is not None:
        assert embedder is not None
        work = replace(work, queries=embedder.encode([one.text for one in inquiries], role="query"))
    found = []
    for inquiry, question, ranked in zip(inquiries, asked, work.ranked_documents(asked), strict=True):
        context = work.builder.context([RankedQuestion(question, "test", (), ranked)], TaskReport())
        documents = {place: work.corpus.documents[place] for place in context}
        shown = [(document.title, context[place]) for place, document in documents.items()]
        texts = tuple(
            ShownText(
                document.id,
                f"[{number}] {document.title}".rstrip(),
                context[place],
                ranked.index(place) + 1,
            )
            for number, (place, document) in enumerate(documents.items(), 1)
        )
        record = asked_record(
            "qa",
            inquiry,
            instruction=templates.instruction(
                templates.QA_INSTRUCTION,
                templates.NO_DOCUMENT if task.abstain else None,
                task.quotes_first,
            ),
            input=templates.qa_input(shown, inquiry.text),
            context_ids=[document.id for document in documents.values()],
        )
        found.append(Asked(record, texts))
    return found
