"""Documents of a task of lm-eval: texts of which lm-eval makes the tokens that our evaluation scores.

We tokenise prompt and choice apart. lm-eval tokenises both together (`TemplateLM._encode_pair` of lm-eval
0.4), after it has moved blank characters at the end of a context to the continuation, and takes as many
tokens for the context as the context alone has. Tokens at the border may merge, such as ``:`` and a line
break, and then other tokens are scored. So a document is cut before the last tokens of its prompt, where
nothing merges, and every choice begins with the end of the prompt. The end of the prompt alone is the first
continuation, so that its log-likelihood can be subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jora_core.generation.choice_trees import Question

#: Tokens at the end of a prompt before which a cut is looked for.
MAX_END_TOKENS = 64

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class TaskDocument:
    """One record as lm-eval reads it.

    Attributes:
        row: `id`, `context`, `continuations` (the end of the prompt, and the same with each choice),
            `choices`, and `gold`, the numbers of the right choices.
        exact: whether lm-eval makes exactly the tokens of our evaluation of it.
        tokens: length of the longest prompt with choice.
    """

    row: dict[str, Any]
    exact: bool
    tokens: int


def task_document(
    question: Question, prompts: Sequence[str], answers: Sequence[str], gold: Sequence[int], encode: Encode
) -> TaskDocument:
    """Make the document of a question.

    Args:
        question: the question with the tokens of its prompt and its choices.
        prompts: texts that may give the prompt's tokens, the likeliest first.
        answers: text of each choice with the text of the token that ends it.
        gold: numbers of the right choices.
        encode: the tokenizer that lm-eval uses, without the special tokens that it would add.
    """
    wanted = question.prompt.tolist()
    made = encode(list(prompts))
    prompt = next((text for text, ids in zip(prompts, made, strict=True) if ids == wanted), prompts[0])
    cut = _cut(prompt, wanted, encode)
    exact = cut is not None
    begin = len(prompt.rstrip()) if cut is None else cut
    end = prompt[begin:]
    continuations = [end]
    for tokens, answer in zip(question.choice_tokens, answers, strict=True):
        # A sentencepiece tokenizer begins a text with a blank, so a choice that we tokenise apart has one.
        forms = [answer, f" {answer}"]
        whole = encode([prompt + form for form in forms])
        same = [ids == [*wanted, *tokens.tolist()] for ids in whole]
        exact = exact and any(same)
        continuations.append(end + forms[same.index(True) if any(same) else 0])
    row = {
        "id": question.id,
        "context": prompt[:begin],
        "continuations": continuations,
        "choices": list(question.choices),
        "gold": list(gold),
    }
    longest = max((len(tokens) for tokens in question.choice_tokens), default=0)
    return TaskDocument(row, exact, len(wanted) + longest)


def _cut(prompt: str, wanted: Sequence[int], encode: Encode) -> int | None:
    """Return the place in a prompt's text before its last tokens where no tokens merge; None without one.

    The text before it does not end with a blank character.
    """
    if encode([prompt])[0] != list(wanted):
        return None
    first = max(1, len(wanted) - MAX_END_TOKENS)
    # A text's tokens are at least one character each, but for the pieces of a character that has no token.
    places = [place for place in range(len(prompt) - 1, 0, -1) if not prompt[place - 1].isspace()]
    for place in places[: 4 * MAX_END_TOKENS]:
        (ids,) = encode([prompt[:place]])
        if len(ids) < first:
            return None
        if len(ids) < len(wanted) and ids == list(wanted[: len(ids)]):
            return place
    return None
