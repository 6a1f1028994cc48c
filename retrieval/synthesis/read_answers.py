"""Read what a teacher wrote: JSON as asked for, or what can be found of it in other text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.text.normalize import one_paragraph

_DECODER = json.JSONDecoder(strict=False)
_NAME = re.compile(r'[\s,]*"(\w+)"\s*:\s*')
_REFUSAL = re.compile(
    r"\s*(?:i['’]?m sorry|sorry,|i am sorry|i can(?:no|['’])t|i am (?:unable|not able)|as an ai|"
    r"es tut mir leid|lo siento|je suis désolé|mi dispiace|desculpe)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TeacherAnswer:
    """The answer of a teacher to one request.

    Attributes:
        request: id of the request.
        status: "ok", or why the text has no question that can be read.
        text: what the teacher wrote.
        model: name of the model, as the teacher gives it.
        created: time of the answer, in whole seconds since 1970.
        prompt_tokens: tokens of the prompt, as the teacher counts them.
        answer_tokens: tokens of the answer.
    """

    request: str
    status: str
    text: str
    model: str
    created: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Draft:
    """A question as the teacher wrote it.

    Attributes:
        kind: its kind; "" if the teacher named none.
        question: the question.
        answer: the short answer.
        quotes: the sentences that it quotes.
        reasoning: the reasoned answer; "" for none.
    """

    kind: str
    question: str
    answer: str
    quotes: tuple[str, ...]
    reasoning: str


def read_drafts(text: str) -> list[Draft]:
    """Return the questions in a teacher's answer, also of one that was cut or stands in other text."""
    return [draft for value in _objects(text) if (draft := _draft(value)) is not None]


def is_refusal(text: str) -> bool:
    """Return whether an answer begins as models do that refuse to answer."""
    return _REFUSAL.match(text) is not None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield each JSON object with a question, wherever it stands in the text."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        # A list that was cut is no JSON, but the objects in it are. Deep nesting is no answer.
        except (ValueError, RecursionError):
            value = _begun_object(text, at)
            if "question" in value and "answer" in value:
                yield value
            at = text.find("{", at + 1)
            continue
        items = value.get("questions") if isinstance(value, dict) else None
        found = items if isinstance(items, list) else [value]
        yield from (item for item in found if isinstance(item, dict) and "question" in item)
        at = text.find("{", end)


def _begun_object(text: str, at: int) -> dict[str, Any]:
    """Return the whole members of an object that was cut, such as at the longest answer.

    Args:
        text: the text with the object.
        at: place of its bracket.
    """
    value: dict[str, Any] = {}
    at += 1
    while name := _NAME.match(text, at):
        try:
            found, at = _DECODER.raw_decode(text, name.end())
        except (ValueError, RecursionError):
            break
        # A number at the end may have had more digits.
        if at == len(text):
            break
        value[name[1]] = found
    return value


def _draft(value: dict[str, Any]) -> Draft | None:
    """Return a draft; None if its question is no text or is empty."""
    question = _text(value.get("question"))
    if not question:
        return None
    quotes = value.get("quotes", value.get("quote"))
    listed = quotes if isinstance(quotes, list) else [quotes]
    return Draft(
        _text(value.get("kind")).lower(),
        one_paragraph(question),
        one_paragraph(_text(value.get("answer"))),
        tuple(text for item in listed if (text := _text(item))),
        _text(value.get("reasoning")),
    )


def _text(value: Any) -> str:
    """Return a value as text; a number is an answer too."""
    if isinstance(value, str):
        # Half of a surrogate pair, which JSON may hold, is no UTF-8.
        return value.encode("utf-8", "ignore").decode("utf-8").strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def usable(text: str, kinds: Sequence[str]) -> bool:
    """Return whether an answer has a question of a kind that was asked for."""
    return any(kind_of(draft, kinds) for draft in read_drafts(text))


def kind_of(draft: Draft, kinds: Sequence[str]) -> str:
    """Return the kind of a draft among those asked for; "" if it has none."""
    if draft.kind.replace("-", "_").replace(" ", "_") in kinds:
        return draft.kind.replace("-", "_").replace(" ", "_")
    # Where one kind is asked for, a teacher that names another means this one.
    return kinds[0] if len(kinds) == 1 else ""
