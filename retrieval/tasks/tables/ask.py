"""Prompts of new questions about tables: the table that is named, or those that the retriever finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jora_core.base.errors import InputError
from retrieval.corpus.mapped_items import Items
from retrieval.corpus.types import Table
from retrieval.prompts import templates
from retrieval.prompts.token_budget import fit, token_count
from retrieval.search.bm25.builder import build_ranker
from retrieval.search.dense.embedder import Embedder
from retrieval.search.top_k import top_k
from retrieval.settings.context import ContextConfig
from retrieval.tasks.asking import Asked, Inquiry, ShownText, asked_record, nearest_ids


def ask(
    config: ContextConfig, folder: Path, inquiries: Sequence[Inquiry], embedder: Embedder | None
) -> list[Asked]:
    """Return the prompts of questions, with the tables that share most with each.

    Args:
        config: the configuration of the task.
        folder: the task's prepared folder.
        inquiries: the questions; `context` is the id of the table that comes first.
        embedder: not used, because tables are retrieved by words alone.

    Raises:
        InputError: no table with the given id.
    """
    task = config.tables
    assert task is not None
    # A table may be there once for each split.
    tables = list({table.id: table for table in Items(folder / "tables.arrow", Table)}.values())
    places = {table.id: place for place, table in enumerate(tables)}
    blocks = [templates.table_block(table.header, table.rows, table.title) for table in tables]
    tokenizer = config.tokenizer_of_words
    index = build_ranker([tokenizer(block) for block in blocks], config.bm25_backend, tokenizer)
    count = token_count(config)
    abstention = templates.NO_TABLE if task.abstain else None
    instruction = templates.instruction(
        templates.TABLES_INSTRUCTION, abstention, task.answer_style == "quote"
    )
    found = []
    for inquiry in inquiries:
        ranked = top_k(index.scores(tokenizer(inquiry.text)), len(tables)).tolist()
        if inquiry.context:
            if inquiry.context not in places:
                near = nearest_ids(inquiry.context, places)
                raise InputError(f"--table {inquiry.context}: no such table in the corpus{near}")
            own = places[inquiry.context]
            ranked = [own, *(place for place in ranked if place != own)]
        chosen = ranked[: task.n_contexts]
        if task.max_context_tokens is not None:
            # As in records: a part of a table gives another answer, so the best one stays whole.
            fitted = fit([f"{blocks[place]}\n\n" for place in chosen], task.max_context_tokens, count, [0])
            chosen = [place for place, text in zip(chosen, fitted.texts, strict=True) if text is not None]
        shown = tuple(
            ShownText(tables[place].id, tables[place].title or tables[place].id, blocks[place], rank)
            for rank, place in enumerate(chosen, 1)
        )
        record = asked_record(
            "tables",
            inquiry,
            instruction=instruction,
            input=templates.tables_input([text.text for text in shown], inquiry.text),
            context_id=shown[0].id,
            context_ids=[text.id for text in shown],
        )
        found.append(Asked(record, shown))
    return found
