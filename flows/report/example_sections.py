"""Sections of the report with examples: training records, and the answers to held-out records."""

from __future__ import annotations

from collections.abc import Sequence

from flows.report.blocks import Answer, Block, Columns, Example, Mark, Passage
from flows.report.facts import SAMPLES, TRAINED_FIRST, Judged, RunFacts, means_gold
from flows.report.wording import system_name

NOT_RETRIEVED = "(the right post was not retrieved, so it is not in the prompt)"


def records(facts: RunFacts) -> list[Block]:
    """Return blocks that show a few whole training records."""
    examples: list[Example] = []
    for row in facts.samples(SAMPLES):
        context, question = _split(row["input"])
        lines = tuple(Passage(text, "right" if _is_post(text, row["gold"]) else "") for text in context)
        answers = (Answer("instruction", row["instruction"]), Answer("answer", row["output"]))
        examples.append(Example(f"{row['task']}: {row['id']}", lines, question, answers))
    return [Columns(tuple(examples))] if examples else []


def predictions(facts: RunFacts, *, right: bool) -> list[Block]:
    """Return blocks with held-out comments that the shown system answered right or wrong, and all answers."""
    examples = tuple(_judged_example(facts, item) for item in facts.judged if item.right == right)
    return [Columns(examples)] if examples else []


def _judged_example(facts: RunFacts, item: Judged) -> Example:
    row = item.record
    context, question = _split(row["input"])
    shown = facts.shown_system or ""
    given = item.answers.get(shown, "")
    lines = tuple(Passage(text, _line_mark(text, row["gold"], given)) for text in context)
    reference = " or ".join(row["gold"]) or NOT_RETRIEVED
    named = [name for name in (*TRAINED_FIRST, "bm25") if name in item.answers]
    answers = tuple(
        Answer(
            system_name(name), item.answers[name], "right" if means_gold(item.answers[name], row) else "wrong"
        )
        for name in named
    )
    return Example(str(row["id"]), lines, question, (Answer("Right answer", reference), *answers))


def _line_mark(text: str, gold: Sequence[str], given: str) -> Mark:
    if _is_post(text, gold):
        return "right"
    return "wrong" if _is_post(text, [given]) else ""


def _is_post(block: str, answers: Sequence[str]) -> bool:
    """Whether the last line of a context block, which is the label of a post, is one of the answers."""
    return block.rpartition("\n")[2] in answers


def _split(text: str) -> tuple[list[str], str]:
    """Split a prompt into its context blocks (posts, tables, documents) and its question."""
    # The format of the prompts: empty lines separate the blocks, and the question is the last block.
    *context, question = text.split("\n\n")
    return context, question
