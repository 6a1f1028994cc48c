"""Table records: a question and its table, with retrieved tables beside it if configured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.mapped_items import Items, write_items
from retrieval.corpus.types import Question, Table, Tally
from retrieval.evaluation.task_report import Progress, TaskReport
from retrieval.guards import leaks
from retrieval.guards.splits import cap, drop_across_splits, drop_near_duplicates, require_training, split_of
from retrieval.prompts import templates
from retrieval.prompts.answer_styles import AnswerTemplate, Passage, false_quotes, taught_answer
from retrieval.prompts.distractors import CopyTest, pick
from retrieval.prompts.token_budget import Count, fit, token_count
from retrieval.readers.tables.mapped_tables import tables_and_questions, tables_with_questions
from retrieval.search.bm25.builder import build_ranker
from retrieval.search.top_k import top_k
from retrieval.settings.context import ContextConfig
from retrieval.settings.document_layouts import TABLE_FORMATS
from retrieval.settings.tasks import TablesTask
from retrieval.tasks.tables.inputs import mapped_sources, table_files, table_format
from retrieval.tasks.task_protocol import Task
from retrieval.text.normalize import duplicate_key, seeded_hash, seeded_share


@dataclass(frozen=True)
class _TableQuestion:
    """A question with its table and the split of the table."""

    question: Question
    table: Table
    split: str


@dataclass(frozen=True)
class _TableQuestionRow:
    """The stored form of a `_TableQuestion`, without its question: the number of the table, and the split."""

    table: int
    split: str


@dataclass(frozen=True)
class _Context:
    """The tables of one prompt. All questions of a table share this context and so a token prefix."""

    ids: tuple[str, ...]
    blocks: tuple[str, ...]


def prepare(
    config: ContextConfig, embedder: object, folder: Path, report: TaskReport, progress: Progress
) -> int:
    """Read, split, limit and index the corpus in `folder`. Return the number of questions to build.

    Args:
        config: the configuration, with a `tables` section.
        embedder: not used, because tables are retrieved by words alone.
        folder: folder of the prepared files.
        report: counts what was read and dropped.
        progress: receives (step, done, total) while the work advances.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    task = config.tables
    assert task is not None
    AnswerTemplate.of(task, "tables")  # refused before hours of work, not after
    progress("tables: read", 0, 0)
    items = _table_questions(config, task, report.tally)
    progress("tables: read", len(items), len(items))
    # By object, because two sources may have different tables with one id. Questions of a table share its
    # object.
    content = {id(item.table): _content(item.table) for item in items}
    # Exact copies first: that is a look-up, and leaves fewer texts for the comparison of near ones.
    items = drop_across_splits(
        items, lambda a: a.split, lambda a: content[id(a.table)], "table_also_in_test", report.tally
    )
    items = drop_near_duplicates(
        items,
        lambda a: a.split,
        lambda a: _block(a.table),
        config.near_duplicates,
        "table_nearly_in_test",
        report.tally,
    )
    items = cap(
        items,
        split=lambda a: a.split,
        context=lambda a: a.table.id,
        name=lambda a: a.question.id,
        limits=(task.max_records, task.max_test_records),
        seed=config.seed,
        tally=report.tally,
    )
    contexts = _contexts(config, task, items, content, report)
    tables: dict[tuple[str, str], int] = {}
    # Tables are numbered by split and id, because both sources of a corpus may have a table of one id.
    rows = [_TableQuestionRow(tables.setdefault((a.split, a.table.id), len(tables)), a.split) for a in items]
    by_key = {(item.split, item.table.id): item.table for item in items}
    write_items(folder / "tables.arrow", Table, (by_key[key] for key in tables))
    write_items(folder / "contexts.arrow", _Context, (contexts[key] for key in tables))
    write_items(folder / "questions.arrow", Question, (item.question for item in items))
    write_items(folder / "question-tables.arrow", _TableQuestionRow, rows)
    return len(items)


@dataclass(frozen=True)
class TablesWork:
    """The prepared files of the table questions, opened to build records.

    A table and its context have the same number.
    """

    task: TablesTask
    template: AnswerTemplate | None
    tables: Items[Table]
    contexts: Items[_Context]
    questions: Items[Question]
    question_rows: Items[_TableQuestionRow]

    def build(self, low: int, high: int, report: TaskReport) -> Iterator[tuple[dict[str, Any], None]]:
        """Yield (record, None) of the questions `low` to `high - 1`, in source order.

        Args:
            low: number of the first question.
            high: number after the last question.
            report: counts records, and questions that are left out.
        """
        for question, row in zip(
            self.questions.run(low, high), self.question_rows.run(low, high), strict=True
        ):
            item = _TableQuestion(question, self.tables[row.table], row.split)
            record = _record(item, self.contexts[row.table], self.task, self.template, report)
            if record is not None:
                yield record, None


def open_work(config: ContextConfig, folder: Path) -> TablesWork:
    """Open the files that `prepare` wrote."""
    task = config.tables
    assert task is not None
    return TablesWork(
        task,
        AnswerTemplate.of(task, "tables"),
        Items(folder / "tables.arrow", Table),
        Items(folder / "contexts.arrow", _Context),
        Items(folder / "questions.arrow", Question),
        Items(folder / "question-tables.arrow", _TableQuestionRow),
    )


def _table_questions(config: ContextConfig, task: TablesTask, tally: Tally) -> list[_TableQuestion]:
    items = []
    splits: dict[str, str] = {}
    count = token_count(config)

    # Cached, because a table has several questions.
    @cache
    def over(table: Table) -> bool:
        # Half a table gives another answer: how many, which is the last. It is all or nothing.
        return task.max_context_tokens is not None and count(_block(table)) > task.max_context_tokens

    for split, tables, questions in _read(task, tally):
        for key in tables:
            splits[f"{split}:{key}"] = split or split_of(config.seed, key, config.test_share)
        for question in questions:
            table = tables[question.context_id]
            if task.max_rows is not None and len(table.rows) > task.max_rows:
                tally.dropped["table_over_max_rows"] += 1
            elif over(table):
                tally.dropped["table_over_max_context_tokens"] += 1
            else:
                items.append(_TableQuestion(question, table, splits[f"{split}:{table.id}"]))
    require_training(splits.values(), "tables", "tables")
    if not items:
        raise InputError(
            f"tables: no table has at most {task.max_rows} rows and {task.max_context_tokens} tokens; raise "
            "tables.max_rows or tables.max_context_tokens"
        )
    return items


def _read(task: TablesTask, tally: Tally) -> Iterator[tuple[str, dict[str, Table], list[Question]]]:
    """Yield (split, tables by id, questions) of each source; the split is "" if the seed decides it."""
    if not task.is_mapped:
        for split, root, tsv in table_files(task):
            read_tables = import_module(TABLE_FORMATS[table_format(task, tsv)]).read_tables
            yield (split, *read_tables(root, tsv, tally, tsv.name, task.abstain))
        return
    asked = task.question_columns
    assert asked is not None
    for source in mapped_sources(task):
        tally.dropped.update(source.left_out)
        if task.questions is not None:
            files, questions = source.files, source.questions
            found = tables_and_questions(files, task.columns, questions, asked, tally, task.abstain)
        else:
            assert task.columns is not None  # the settings see to both
            found = tables_with_questions(source.files, task.columns, asked, tally, task.abstain)
        yield (source.split, *found)


def _block(table: Table) -> str:
    return templates.table_block(table.header, table.rows, table.title)


def _content(table: Table) -> bytes:
    return duplicate_key(_block(table))


def _contexts(
    config: ContextConfig,
    task: TablesTask,
    items: list[_TableQuestion],
    content: dict[int, bytes],
    report: TaskReport,
) -> dict[tuple[str, str], _Context]:
    """Return the context of every table: the table alone, or with the most similar tables of its split."""
    out: dict[tuple[str, str], _Context] = {}
    count = token_count(config)
    for split in ("train", "test"):
        # Only tables of the same split, so that a training prompt shows no table of the test split.
        tables = list({item.table.id: item.table for item in items if item.split == split}.values())
        blocks = [_block(table) for table in tables]
        if task.n_contexts == 1:
            out.update({(split, t.id): _Context((t.id,), (b,)) for t, b in zip(tables, blocks, strict=True)})
            continue
        tokenizer = config.tokenizer_of_words
        tokens = [tokenizer(block) for block in blocks]
        index = build_ranker(tokens, config.bm25_backend, tokenizer)
        for place, table in enumerate(tables):
            with_oracle = split == "test" or seeded_share(config.seed, "oracle", table.id) < task.oracle_share
            # Each word of the table once, in a fixed order: a repeated cell value must not dominate, and a
            # set has another order in each process.
            ranked = top_k(index.scores(sorted(set(tokens[place]))), len(tables)).tolist()
            # A table equal to the right one, or nearly, would be a second right answer, not a distractor.
            own, copies = content[id(table)], CopyTest([blocks[place]], config.near_duplicates)
            usable = (
                i for i in ranked if i != place and content[id(tables[i])] != own and not copies(blocks[i])
            )
            draw = partial(_draw, config.seed, table.id, tables)
            ranks = task.ranks if split == "train" else None
            # `with_oracle` is a bool, which counts as 1.
            chosen, outside = pick(usable, task.n_contexts - with_oracle, ranks, draw)
            report.note(split, "distractor_outside_ranks", outside)
            if task.max_context_tokens is not None:
                # The right table is the most wanted one, so it is the last that the budget drops.
                wanted = ([place] if with_oracle else []) + chosen
                chosen, shortened = _fitted(wanted, blocks, place, task.max_context_tokens, count)
                report.note(split, "context_shortened", shortened)
            elif with_oracle:
                chosen = [place, *chosen]
            # In a seeded order, because otherwise the right table would always be first.
            chosen.sort(key=lambda i: seeded_hash(config.seed, "order", table.id, tables[i].id))
            ids = tuple(tables[i].id for i in chosen)
            out[split, table.id] = _Context(ids, tuple(blocks[i] for i in chosen))
    return out


def _draw(seed: int, table: str, tables: list[Table], place: int) -> int:
    return seeded_hash(seed, "distractor", table, tables[place].id)


def _fitted(
    chosen: list[int], blocks: list[str], right: int, budget: int, count: Count
) -> tuple[list[int], bool]:
    """Return the chosen tables within the budget, each whole, and whether a table was dropped."""
    # With the blank line that separates blocks in the prompt, because it costs tokens too.
    texts = [blocks[i] + "\n\n" for i in chosen]
    # Without the right table, the first stays: a prompt needs at least one.
    protected = [chosen.index(right)] if right in chosen else [0]
    fitted = fit(texts, budget, count, protected)
    return [i for i, text in zip(chosen, fitted.texts, strict=True) if text is not None], fitted.shortened


def _record(
    item: _TableQuestion,
    context: _Context,
    task: TablesTask,
    template: AnswerTemplate | None,
    report: TaskReport,
) -> dict[str, Any] | None:
    question = item.question
    name = f"tables:{question.id}"
    passages = [Passage(i, "", block) for i, block in zip(context.ids, context.blocks, strict=True)]
    abstention = templates.NO_TABLE if task.abstain else None
    taught = taught_answer(
        task.answer_style,
        template,
        record=name,
        question=question.text,
        answers=question.answers,
        direct=templates.ANSWER_SEPARATOR.join(question.answers),
        passages=passages,
        # A question that its table does not answer has no right table.
        oracles=[p for p in passages if p.id == item.table.id and question.answers],
        abstain=abstention,
    )
    report.note(item.split, taught.counted)
    shown = templates.tables_input(context.blocks, question.text)
    if false_quotes(taught.output, shown):
        report.tally.dropped[leaks.FALSE_QUOTE] += 1
        return None
    return {
        "id": name,
        "instruction": templates.instruction(
            templates.TABLES_INSTRUCTION, abstention, task.answer_style == "quote"
        ),
        "input": shown,
        "output": taught.output,
        "task": "tables",
        "split": item.split,
        "context_id": item.table.id,
        "context_ids": list(context.ids),
        "oracle_ids": [item.table.id],
        "oracle_in_context": item.table.id in context.ids and bool(question.answers),
        "gold": list(taught.gold),
        "choices": [],
        "source": question.source,
        "source_row": question.row,
        # Not of an abstention, which has no canonical form.
        "canonical": list(question.canonical) if taught.gold == question.answers else [],
    }


TASK = Task(prepare, open_work)
