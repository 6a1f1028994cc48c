"""What a teacher is asked. A change of a text here is a new version, whose answers are asked for anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval.prompts.answer_matching import ANSWER_MARK
from retrieval.prompts.answer_styles import QUOTE_BEGIN, QUOTE_END
from retrieval.settings.synthesis.question_generation import Kind

#: Recorded with each question. The digest of the whole prompt is part of the key of an answer.
PROMPT_VERSION = 1
#: Characters of texts of an answer; of the first three, longer ones are refused.
LONGEST_QUESTION, LONGEST_ANSWER, LONGEST_FACT = 400, 600, 120
_LONGEST_QUOTE, _LONGEST_REASONING = 400, 1200

_SYSTEM = (
    "You write questions that test whether a reader can find answers in documents. You answer with one JSON "
    "object and nothing else."
)
_RULES = """Rules:
- Write in the language of the text.
- Somebody who does not see the text must understand the question: name people, places and things. Never \
write "the text", "this table", "the author", "above" or a file name.
- Ask only about what the text says, not about general knowledge.
- "answer" is short."""
_KINDS: dict[Kind, str] = {
    "fact": '"fact": its answer is a name, number, date or short phrase, copied word by word from the text.',
    "how_to": '"how_to": how something is done; the answer gives the steps in few words.',
    "comparison": '"comparison": compares what Text 1 says with what Text 2 says; both are needed for the '
    "answer.",
    "unanswerable": '"unanswerable": about a subject of the text, but the text does not say the answer. Its '
    '"answer" is "" and its "quotes" are [].',
}
_QUOTES = '- "quotes": the sentences of the text that hold the answer, copied character by character.'
_REASONING = (
    '- "reasoning": one to three sentences that lead to the answer. They quote the text as '
    f"{QUOTE_BEGIN} copied sentence {QUOTE_END} and end in {ANSWER_MARK} and the answer."
)


def messages(
    title: str, texts: Sequence[str], kinds: Sequence[Kind], count: int, reasoned: bool
) -> tuple[str, str]:
    """Return the system message and the user message of a request.

    Args:
        title: title of the document; "" for none.
        texts: the chunk, or the two chunks of a comparison.
        kinds: the kinds of questions that are asked for.
        count: number of questions of each kind.
        reasoned: whether answers come with their reasoning.
    """
    single = len(texts) == 1
    shown = [f"Text{'' if single else f' {number}'}:\n{text}" for number, text in enumerate(texts, 1)]
    wanted = "\n".join(f"- {count} of kind {_KINDS[kind]}" for kind in kinds)
    fields = ["kind", "question", "answer", "quotes", *(["reasoning"] if reasoned else [])]
    example = ", ".join(f'"{name}": {"[...]" if name == "quotes" else "..."}' for name in fields)
    parts = [
        _RULES,
        _QUOTES + (f"\n{_REASONING}" if reasoned else ""),
        *([f"Title: {title}"] if title else []),
        *shown,
        f"Write these questions about the text:\n{wanted}",
        f'Answer with JSON: {{"questions": [{{{example}}}]}}',
    ]
    # The rules and the list of fields are one block.
    return _SYSTEM, "\n\n".join(["\n".join(parts[:2]), *parts[2:]])


def answer_schema(
    kinds: Sequence[Kind], count: int, reasoned: bool, with_lengths: bool = True
) -> dict[str, Any]:
    """Return the JSON schema of an answer (JSON Schema 2020-12, in the part that servers support).

    Args:
        kinds: the kinds of questions that are asked for.
        count: number of questions of each kind.
        reasoned: whether answers come with their reasoning.
        with_lengths: whether texts have a largest length. Not all servers know it. Without it, small models
            write one text without end.
    """

    def text(longest: int) -> dict[str, Any]:
        return {"type": "string", **({"maxLength": longest} if with_lengths else {})}

    facts = list(kinds) == ["fact"]
    fields: dict[str, Any] = {
        "kind": {"type": "string", "enum": list(kinds)},
        "question": text(LONGEST_QUESTION),
        "answer": text(LONGEST_FACT if facts else LONGEST_ANSWER),
        # A fact stands in one sentence.
        "quotes": {"type": "array", "items": text(_LONGEST_QUOTE), "maxItems": 1 if facts else 4},
        **({"reasoning": text(_LONGEST_REASONING)} if reasoned else {}),
    }
    item = {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        # Without a largest number, small models would write questions without end.
        "properties": {"questions": {"type": "array", "items": item, "maxItems": count * len(kinds)}},
        "required": ["questions"],
        "additionalProperties": False,
    }
