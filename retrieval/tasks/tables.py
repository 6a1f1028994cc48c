"""Table records: answer a question from its table, with retrieved tables beside it if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval import guards, prompts
from retrieval.bm25 import build_index, top_k
from retrieval.columns import Items, write_items
from retrieval.config import ContextConfig, TablesTask
from retrieval.corpus import Question, Table, Tally
from retrieval.errors import InputError
from retrieval.readers.wikitables import read_tables
from retrieval.report import Progress, TaskReport
from retrieval.sources import table_files
from retrieval.text import Tokenizer, duplicate_key, seeded_hash, seeded_share


@dataclass(frozen=True)
class _Ask:
    question: Question
    table: Table
    split: str


@dataclass(frozen=True)
class _AskRow:
    """An `_Ask` by the number of its table."""

    table: int
    split: str


@dataclass(frozen=True)
class _Context:
    """The tables of one prompt; all questions of a table share it, and so share a token prefix."""

    ids: tuple[str, ...]
    blocks: tuple[str, ...]


def prepare(
    config: ContextConfig, embedder: object, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Reads, splits and thins the corpus into `folder`; returns the number of questions to build.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.tables
    assert task is not None
    progress("tables: read", 0, 0)
    asks = _asks(config, task, report.tally)
    content = {id(ask.table): _content(ask.table) for ask in asks}
    asks = guards.drop_across_splits(
        asks, lambda a: a.split, lambda a: content[id(a.table)], "table_also_in_test", report.tally
    )
    asks = guards.drop_near_duplicates(
        asks,
        lambda a: a.split,
        lambda a: _block(a.table),
        config.near_duplicates,
        "table_nearly_in_test",
        report.tally,
    )
    asks = guards.cap(
        asks,
        lambda a: a.split,
        lambda a: a.table.id,
        lambda a: a.question.id,
        (task.max_records, task.max_test_records),
        config.seed,
        report.tally,
    )
    contexts = _contexts(config, task, asks, content)
    tables: dict[tuple[str, str], int] = {}
    rows = [_AskRow(tables.setdefault((a.split, a.table.id), len(tables)), a.split) for a in asks]
    held = {(ask.split, ask.table.id): ask.table for ask in asks}
    write_items(folder / "tables.arrow", Table, (held[key] for key in tables))
    write_items(folder / "contexts.arrow", _Context, (contexts[key] for key in tables))
    write_items(folder / "questions.arrow", Question, (ask.question for ask in asks))
    write_items(folder / "asks.arrow", _AskRow, rows)
    return len(asks)


@dataclass(frozen=True)
class TablesWork:
    """What `prepare` wrote, opened to build records from; tables and their contexts share numbers."""

    tables: Items[Table]
    contexts: Items[_Context]
    questions: Items[Question]
    asks: Items[_AskRow]

    def build(self, low: int, high: int, report: TaskReport) -> Iterator[tuple[dict[str, Any], None]]:
        """(record, None) of the questions low to high - 1, in source order."""
        for question, row in zip(self.questions.run(low, high), self.asks.run(low, high), strict=True):
            ask = _Ask(question, self.tables[row.table], row.split)
            yield _record(ask, self.contexts[row.table]), None


def open_work(config: ContextConfig, folder: Path) -> TablesWork:
    """Opens what `prepare` wrote."""
    return TablesWork(
        Items(folder / "tables.arrow", Table),
        Items(folder / "contexts.arrow", _Context),
        Items(folder / "questions.arrow", Question),
        Items(folder / "asks.arrow", _AskRow),
    )


def _asks(config: ContextConfig, task: TablesTask, tally: Tally) -> list[_Ask]:
    asks = []
    splits: dict[str, str] = {}
    for split, root, tsv in table_files(task):
        tables, questions = read_tables(root, tsv, tally, tsv.name)
        for key in tables:
            splits[f"{split}:{key}"] = split or guards.split_of(config.seed, key, config.test_share)
        for question in questions:
            table = tables[question.context_id]
            if task.max_rows is not None and len(table.rows) > task.max_rows:
                tally.dropped["table_over_max_rows"] += 1
            else:
                asks.append(_Ask(question, table, splits[f"{split}:{table.id}"]))
    guards.require_training(splits.values(), "tables", "tables")
    if not asks:
        raise InputError(f"tables: no table has at most {task.max_rows} rows; raise tables.max_rows")
    return asks


def _block(table: Table) -> str:
    return prompts.table_block(table.header, table.rows, table.title)


def _content(table: Table) -> bytes:
    return duplicate_key(_block(table))


def _contexts(
    config: ContextConfig, task: TablesTask, asks: list[_Ask], content: dict[int, bytes]
) -> dict[tuple[str, str], _Context]:
    """The context of every table: alone, or among the tables of its own split most like it."""
    out: dict[tuple[str, str], _Context] = {}
    for split in ("train", "test"):
        tables = list({ask.table.id: ask.table for ask in asks if ask.split == split}.values())
        blocks = [_block(table) for table in tables]
        if task.n_contexts == 1:
            out.update({(split, t.id): _Context((t.id,), (b,)) for t, b in zip(tables, blocks, strict=True)})
            continue
        tokenizer = Tokenizer(config.bm25_stemmer)
        tokens = [tokenizer(block) for block in blocks]
        index = build_index(tokens, config.bm25_backend, tokenizer)
        for place, table in enumerate(tables):
            with_oracle = split == "test" or seeded_share(config.seed, "oracle", table.id) < task.oracle_share
            ranked = top_k(index.scores(sorted(set(tokens[place]))), len(tables)).tolist()
            # A table equal to the right one would be a second right answer, not a distractor.
            own = content[id(table)]
            others = [i for i in ranked if i != place and content[id(tables[i])] != own]
            chosen = ([place] if with_oracle else []) + others
            chosen = chosen[: task.n_contexts]
            chosen.sort(key=lambda i: seeded_hash(config.seed, "order", table.id, tables[i].id))
            ids = tuple(tables[i].id for i in chosen)
            out[split, table.id] = _Context(ids, tuple(blocks[i] for i in chosen))
    return out


def _record(ask: _Ask, context: _Context) -> dict[str, Any]:
    question = ask.question
    return {
        "id": f"tables:{question.id}",
        "instruction": prompts.TABLES_INSTRUCTION,
        "input": prompts.tables_input(context.blocks, question.text),
        "output": prompts.ANSWER_SEPARATOR.join(question.answers),
        "task": "tables",
        "split": ask.split,
        "context_id": ask.table.id,
        "context_ids": list(context.ids),
        "oracle_ids": [ask.table.id],
        "oracle_in_context": ask.table.id in context.ids,
        "gold": list(question.answers),
        "choices": [],
        "source": question.source,
        "source_row": question.row,
    }
