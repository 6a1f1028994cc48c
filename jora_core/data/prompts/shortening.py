"""Prompt tokens of an Alpaca record, and the shortening of prompts that are too long.

Instruction, question (the last paragraph of `input`) and answer always stay; only the retrieved context is
shortened. First whole retrieved texts are dropped; the first text (a thread's opening post) is dropped last.
Then lines of the text with the answer are dropped, except its first and last. If the prompt is still too
long, tokens are cut, but none of a template's control tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from jora_core.base.errors import InputError
from jora_core.data.prompts.prompt_template import PromptTemplate
from jora_core.data.tokenizer import TextTokenizer


class NoRoomError(InputError):
    """The template and the instruction alone are longer than a prompt may be."""


def split_question(input: str) -> tuple[str, str]:
    """Split an `input` into the context and the question, which is the last paragraph.

    An `input` of a single paragraph is all context.
    """
    context, separator, question = input.rpartition("\n\n")
    return (context, separator + question) if separator else (input, "")


def context_blocks(lines: Sequence[str], count: int) -> list[range] | None:
    """Find the line range of each of the `count` retrieved texts in a context; None if no division fits.

    Three divisions are tried: by numbers (``[n] title`` above a document, ``#n name`` below a post), by blank
    lines, and one line for each text. The first division that gives `count` texts is used.
    """
    if count < 1:
        return None
    blank = [i for i, line in enumerate(lines) if not line]
    # From the most specific form to the least: blank lines come after numbers, since a numbered document may
    # hold blank lines.
    for starts in (
        [0] if count == 1 else [],
        _at_numbers(lines, count),
        _after_labels(lines, count),
        [0, *(i + 1 for i in blank)],
        list(range(len(lines))),
    ):
        if len(starts) == count:
            return [range(a, b) for a, b in itertools.pairwise([*starts, len(lines)])]
    return None


def _after_labels(lines: Sequence[str], count: int) -> list[int]:
    """Return the first lines of posts whose last line, before a blank line or the end, is their label."""
    starts = [0]
    for i, line in enumerate(lines):
        ends = i + 1 == len(lines) or not lines[i + 1]
        # Only the next number counts: a line "#7 …" within the first post is no label.
        if ends and line.startswith(f"#{len(starts)} "):
            starts.append(i + 2)
    # The last label has no post after it.
    return starts[:-1] if len(starts) == count + 1 and starts[-1] > len(lines) else []


def _at_numbers(lines: Sequence[str], count: int) -> list[int]:
    starts: list[int] = []
    for i, line in enumerate(lines):
        # Only the next number counts: a citation "[5] …" within the first document begins no document.
        if line.startswith(f"[{len(starts) + 1}] "):
            starts.append(i)
    return starts if len(starts) == count and starts[:1] == [0] else []


def shorten_prompt(
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    instruction: str,
    input: str,
    budget: int,
    *,
    blocks: int = 0,
    protected: Collection[int] = (),
) -> np.ndarray:
    """Return the tokens (int32, at most `budget`) of a prompt whose context is cut until it fits.

    Args:
        tokenizer: the model's.
        template: the template of all prompts.
        instruction: the task's instruction, which is never cut.
        input: context and question.
        budget: limit of the prompt in tokens, at least 1.
        blocks: number of retrieved texts in the context, 0 if unknown.
        protected: numbers, from 0, of the retrieved texts that are dropped last. In training, these are the
            texts with the answer.

    Raises:
        NoRoomError: a template with control tokens and the instruction alone exceed the budget.
    """
    context, question = split_question(input)
    lines = context.split("\n")
    total = len(tokenizer.encode(template.prompt(instruction, input)))
    # All lines in one call: tokenising the prompt again after each line would take quadratic time.
    costs = [len(tokens) for tokens in tokenizer.encode_batch([line + "\n" for line in lines])]
    dropped: set[int] = set()
    found = context_blocks(lines, blocks)
    each = [range(i, i + 1) for i in range(len(lines))]
    order = _drop_order(found, protected, lines) if found else _drop_order(each, (), lines)
    for part in order:
        if total <= budget:
            break
        dropped.update(part)
        total -= sum(costs[line] for line in part)
        # Each line was tokenised alone, so the sum may be off where tokens would merge across lines: tokenise
        # the whole prompt before it is accepted.
        if total <= budget:
            tokens = tokenizer.encode(template.prompt(instruction, _kept(lines, dropped) + question))
            if len(tokens) <= budget:
                return tokens
            total = len(tokens)
    return _cut_tokens(tokenizer, template, instruction, _kept(lines, dropped), question, budget)


def _kept(lines: Sequence[str], dropped: Collection[int]) -> str:
    """Return the context without the dropped lines and without blank lines at its ends."""
    kept = "\n".join(text for i, text in enumerate(lines) if i not in dropped)
    return kept.strip("\n") if dropped else kept


def _drop_order(blocks: Sequence[range], protected: Collection[int], lines: Sequence[str]) -> list[range]:
    """Return parts of the context in the order in which they are dropped.

    Whole texts that are not protected are dropped first; of these, the first text (a thread's opening post)
    is dropped last. Then lines of the remaining texts are dropped, except the first line (a table's header)
    and the last line (a post's label) of each.
    """
    kept = [block for number, block in enumerate(blocks) if number in protected] or [blocks[0]]
    free = [block for block in blocks[1:] if block not in kept]
    if blocks[0] not in kept:
        free.append(blocks[0])
    inner = []
    for block in kept:
        full = [i for i in block if lines[i]]
        inner += [range(i, i + 1) for i in full[1:-1]]
    return [*free, *inner]


def _cut_tokens(
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    instruction: str,
    context: str,
    question: str,
    budget: int,
) -> np.ndarray:
    """Cut tokens from the middle of the context, then from the start of the question."""
    before, after, controls = template.frame(instruction)
    texts = (before, template.plain(context), template.plain(question) + after)
    head, middle, tail = (tokenizer.encode(text) for text in texts)
    context_limit = budget - len(head) - len(tail)
    if context_limit >= 0:
        # Both ends of the context stay: its header, and what stands beside the question.
        first = min(len(middle), context_limit) // 2
        last = min(len(middle), context_limit) - first
        middle = np.concatenate([middle[:first], middle[len(middle) - last :]])
        return np.concatenate([head, middle, tail])
    # Without its control tokens a prompt is of no kind that the model knows.
    if controls and budget < (least := len(head) + len(tokenizer.encode(after))):
        raise NoRoomError(
            f"the prompt template and the instruction take {least} tokens, but only {budget} are left for a "
            "prompt; raise max_seq_len, or shorten the instruction or prompt.system"
        )
    # The end of the prompt stays, because it marks the start of the answer.
    return (
        np.concatenate([head, tail])[-budget:]
        if budget <= len(head)
        else (np.concatenate([head, tail[-(budget - len(head)) :]]))
    )
