"""From one Alpaca record to prompt tokens, and how a prompt that is too long is shortened.

What must survive a cut is the instruction, the question (the last paragraph of `input`) and the answer; what
can be given up is retrieved context. So lines of the context are dropped from its middle on, after its first
line (a table's header, a thread's opening post), and only if that is not enough are tokens cut.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from jora_core.errors import InputError
from jora_core.tokenize import TextTokenizer

_HERE = "\x00input\x00"


def fill_template(template: str, instruction: str, input: str) -> str:
    """The prompt's text.

    Raises:
        InputError: the template has a field other than {instruction} and {input}, or stray braces.
    """
    try:
        return template.format(instruction=instruction, input=input)
    except (KeyError, IndexError, ValueError) as err:
        raise InputError(
            f"prompt_template: bad field {err}; only {{instruction}} and {{input}} are known"
        ) from None


def split_question(input: str) -> tuple[str, str]:
    """Context and question of an `input`: the question is its last paragraph; alone, it is all context."""
    context, separator, question = input.rpartition("\n\n")
    return (context, separator + question) if separator else (input, "")


def shorten_prompt(
    tokenizer: TextTokenizer,
    template: str,
    instruction: str,
    input: str,
    budget: int,
    protected: Collection[int] = (),
) -> np.ndarray:
    """Tokens (int32, at most `budget`) of a prompt whose context is cut until it fits.

    Args:
        budget: most tokens of the prompt, at least 1.
        protected: context lines, counted from 0, that go last (in training: those that hold the answer).
    """
    context, question = split_question(input)
    lines = context.split("\n")
    total = len(tokenizer.encode(fill_template(template, instruction, input)))
    costs = [len(tokens) for tokens in tokenizer.encode_batch([line + "\n" for line in lines])]
    dropped: set[int] = set()
    for line in _drop_order(len(lines), protected):
        if total <= budget or len(dropped) == len(lines) - 1:
            break
        dropped.add(line)
        total -= costs[line]
        if total <= budget:  # the costs are of lines alone: a merge across the cut can be one token off
            kept = "\n".join(text for i, text in enumerate(lines) if i not in dropped)
            tokens = tokenizer.encode(fill_template(template, instruction, kept + question))
            if len(tokens) <= budget:
                return tokens
            total = len(tokens)
    kept = "\n".join(text for i, text in enumerate(lines) if i not in dropped)
    return _cut_tokens(tokenizer, template, instruction, kept, question, budget)


def _drop_order(n_lines: int, protected: Collection[int]) -> list[int]:
    order = [*range(1, n_lines), 0]
    return [i for i in order if i not in protected] + [i for i in order if i in protected]


def _cut_tokens(
    tokenizer: TextTokenizer, template: str, instruction: str, context: str, question: str, budget: int
) -> np.ndarray:
    """Cut tokens out of the middle of the context, then off the start of the question."""
    before, _, after = fill_template(template, instruction, _HERE).partition(_HERE)
    head, middle, tail = (tokenizer.encode(text) for text in (before, context, question + after))
    room = budget - len(head) - len(tail)
    if room >= 0:
        first = min(len(middle), room) // 2
        last = min(len(middle), room) - first
        middle = np.concatenate([middle[:first], middle[len(middle) - last :]])
        return np.concatenate([head, middle, tail])
    return (
        np.concatenate([head, tail])[-budget:]
        if budget <= len(head)
        else (np.concatenate([head, tail[-(budget - len(head)) :]]))
    )
