"""Answer styles: the direct answer, a quotation before it, a reasoned answer, or a template of the user.

Quote-then-answer is RAFT's format (arXiv:2403.10131, section 3): the sentence of the right document that
holds the answer, verbatim between `##begin_quote##` and `##end_quote##`, then `##Answer:` and the answer.
Scoring reads the text after the last `##Answer:` (`retrieval.prompts.answer_matching.final_answer`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from jora_core.base.errors import InputError
from retrieval.prompts.answer_matching import ANSWER_MARK
from retrieval.settings.answer_style import DocumentStyle
from retrieval.text.sentences import sentence_spans, sentences
from retrieval.text.words import tokenize

if TYPE_CHECKING:
    from jinja2 import Template

QUOTE_BEGIN = "##begin_quote##"
QUOTE_END = "##end_quote##"
TEMPLATE_FIELDS = ("question", "answer", "answers", "context", "oracles", "quote", "oracle_in_context")
# DOTALL: a user's template may quote several lines.
_QUOTED = re.compile(re.escape(QUOTE_BEGIN) + r"(.*?)" + re.escape(QUOTE_END), re.DOTALL)


def supporting_sentence(passages: Sequence[str], answers: Sequence[str], question: str) -> str | None:
    """Return the sentence that holds an answer as whole words, or None if no text holds it.

    If the answer goes over several sentences, as a list or code does, all of them are returned.

    Args:
        passages: the texts to search.
        answers: accepted answers. The first answer that occurs in a sentence is used.
        question: the question. Of several such sentences, the one that shares most words with the question is
            returned; the first one wins a tie.
    """
    # Each sentence is tokenised once, and not again for each answer.
    found = [(sentence, tokenize(sentence)) for passage in passages for sentence in sentences(passage)]
    question_words = set(tokenize(question))
    for answer in answers:
        wanted = tokenize(answer)
        holding = [(sentence, words) for sentence, words in found if wanted and _holds(words, wanted)]
        if holding:
            return max(holding, key=lambda item: len(question_words & set(item[1])))[0]
    runs = (_run_of_sentences(passage, tokenize(answer)) for answer in answers for passage in passages)
    return next((run for run in runs if run), None)


def _run_of_sentences(passage: str, wanted: Sequence[str]) -> str:
    """Return the part of a passage, in whole sentences, that holds the words; "" if there is none."""
    if not wanted:
        return ""
    spans = sentence_spans(passage)
    words = [tokenize(passage[start:end]) for start, end in spans]
    sentence_of = [number for number, sentence in enumerate(words) for _ in sentence]
    at = _place([word for sentence in words for word in sentence], wanted)
    if at is None:
        return ""
    return passage[spans[sentence_of[at]][0] : spans[sentence_of[at + len(wanted) - 1]][1]]


def _holds(words: Sequence[str], wanted: Sequence[str]) -> bool:
    return _place(words, wanted) is not None


def _place(words: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Return the first place of a run of words in others, or None."""
    n = len(wanted)
    return next((i for i in range(len(words) - n + 1) if words[i : i + n] == wanted), None)


def quote_then_answer(sentence: str, answer: str) -> str:
    """Return an answer in RAFT's format: the quotation, then the answer, on one line."""
    return f"{QUOTE_BEGIN} {sentence} {QUOTE_END} {ANSWER_MARK} {answer}"


def quotations(output: str) -> list[str]:
    """Return the quoted spans of an answer, in its order."""
    return [found.strip() for found in _QUOTED.findall(output)]


def false_quotes(output: str, context: str) -> list[str]:
    """Return the quoted spans of an answer that do not occur verbatim in the context."""
    return [span for span in quotations(output) if span not in context]


class Styled(Protocol):
    """The settings of a task that the answer styles use."""

    @property
    def answer_template(self) -> str | None:
        """Jinja source of the template of the style "template", else None."""
        ...


@dataclass(frozen=True)
class AnswerTemplate:
    """A Jinja template of the taught answer, written by the user.

    The template runs in a sandbox and may use the fields in `TEMPLATE_FIELDS`.

    The template runs in a sandbox and may use the fields in `TEMPLATE_FIELDS`.
    """

    template: Template
    field: str

    @classmethod
    def load(cls, source: str, field: str) -> AnswerTemplate:
        """Compile a template. Errors name the setting `field`.

        Raises:
            InputError: the template has a syntax error. The message names the line.
        """
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # A configuration may come from someone else: the sandbox keeps its template from running code.
        # StrictUndefined: a mistyped field is an error and not an empty text.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
        try:
            return cls(environment.from_string(source), field)
        except TemplateSyntaxError as error:
            raise InputError(f"{field}, line {error.lineno}: {error.message}; mend the template") from error

    @classmethod
    def of(cls, task: Styled, name: str) -> AnswerTemplate | None:
        """Compile the template of a task's settings, or return None if the settings have none.

        Errors name the task `name`.

        Raises:
            InputError: the template has a syntax error.
        """
        source = task.answer_template
        return None if source is None else cls.load(source, f"{name}.answer_template")

    def render(self, values: Mapping[str, Any], record: str) -> str:
        """Return the answer that a record teaches, written by the template.

        Raises:
            InputError: the template fails on the record (an unknown field, a forbidden access, or another
                error), or returns no text.
        """
        try:
            text = self.template.render(values).strip()
        except Exception as error:  # a user's template may raise anything
            said = " ".join(str(error).split()) or type(error).__name__
            known = ", ".join(TEMPLATE_FIELDS)
            raise InputError(f"{self.field}: record {record}: {said}; known fields: {known}") from error
        if not text:
            raise InputError(
                f"{self.field}: record {record}: the template gives no text; every record needs one"
            )
        return text


@dataclass(frozen=True)
class Passage:
    """A text of the prompt: its id, and its title and text as the prompt shows them."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Taught:
    """The taught answer of a record, and the answers that its evaluation accepts.

    Attributes:
        output: the text that the model learns to write.
        gold: the answers that the evaluation accepts.
        counted: the event that the report counts for this record; "" for none.
    """

    output: str
    gold: tuple[str, ...]
    counted: str = ""


def taught_answer(
    style: DocumentStyle,
    template: AnswerTemplate | None,
    *,
    record: str,
    question: str,
    answers: Sequence[str],
    direct: str,
    passages: Sequence[Passage],
    oracles: Sequence[Passage],
    abstain: str | None,
    reasoned: str = "",
) -> Taught:
    """Return the answer that a record teaches, in the configured style.

    If no sentence can be quoted (the prompt has no oracle, or no sentence of the oracle holds the answer),
    the direct answer is taught, and the report counts this.

    Args:
        style: the configured style.
        template: the user's template, for the style "template".
        record: the record's id, for errors.
        question: the question's text.
        answers: the accepted answers, the first of which is taught.
        direct: the answer as the style "direct" teaches it.
        passages: all texts of the prompt, in prompt order.
        oracles: those of the passages that hold the answer; empty if the prompt does not answer the
            question.
        abstain: taught answer if `oracles` is empty; None: the accepted answer is still taught.
        reasoned: the question's own reasoned answer, for the style "reasoned"; "" for none.

    Raises:
        InputError: the template fails on the record.
    """
    gold = tuple(answers)
    # Before the styles: a prompt without its document is answered the same way in each of them.
    if not oracles and abstain is not None:
        return Taught(abstain, (abstain,), "abstained")
    if style == "direct":
        return Taught(direct, gold)
    if style == "reasoned" and reasoned and oracles:
        shown = "\n\n".join(passage.text for passage in oracles)
        if not false_quotes(reasoned, shown):
            return Taught(reasoned, gold, "reasoned")
        # The budget of the context has cut what it quotes.
        return Taught(direct, gold, "reasoned_quote_not_in_prompt")
    quote = supporting_sentence([passage.text for passage in oracles], answers, question)
    if style == "template":
        if template is None:
            raise ValueError("style template without a template")
        values = {
            "question": question,
            "answer": direct,
            "answers": gold,
            "context": passages,
            "oracles": oracles,
            "quote": quote or "",
            "oracle_in_context": bool(oracles),
        }
        return Taught(template.render(values, record), gold)
    if quote is None:
        return Taught(direct, gold, "quote_not_found" if oracles else "quote_without_oracle")
    return Taught(quote_then_answer(quote, direct), gold, "quoted")
