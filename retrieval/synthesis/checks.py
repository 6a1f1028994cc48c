"""The checks of a made question. Each refusal has a reason, and the report counts the reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.corpus.types import Document
from retrieval.prompts.answer_matching import ANSWER_MARK, final_answer
from retrieval.prompts.answer_styles import (
    QUOTE_BEGIN,
    QUOTE_END,
    quotations,
    quote_then_answer,
    supporting_sentence,
)
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.language import is_other_language
from retrieval.synthesis.prompts import LONGEST_ANSWER, LONGEST_FACT, LONGEST_QUESTION
from retrieval.synthesis.read_answers import Draft
from retrieval.synthesis.standalone import named_source, points_at_text
from retrieval.text.sentences import sentence_spans
from retrieval.text.words import tokenize

#: Words that a question must share with its text. Shorter words are those of grammar in most languages.
_CONTENT_WORD = 4
_NEAR = 1
#: Of all scripts; and languages that write questions without one.
_QUESTION_MARKS = "?\uff1f\u061f\u037e\u055e\u1367"
_WITHOUT_MARKS = frozenset({"ja", "km", "lo", "th"})
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_DIGITS = re.compile(r"(?<![\w.])\+?\(?\d[\d ()/-]{7,}\d(?!\w)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
_MARKS = re.compile(rf"{re.escape(QUOTE_BEGIN)}(.*?){re.escape(QUOTE_END)}", re.DOTALL)


@dataclass(frozen=True)
class Candidate:
    """A draft with what it was made of.

    Attributes:
        draft: the question as the teacher wrote it.
        kind: its kind, one of those asked for.
        chunks: the chunk, or the two chunks of a comparison.
        language: ISO 639 code of the chunks' language.
        reasoned: whether a reasoned answer was asked for.
        settings: the settings of the checks.
    """

    draft: Draft
    kind: str
    chunks: tuple[Document, ...]
    language: str
    reasoned: bool
    settings: QuestionGeneration


@dataclass(frozen=True)
class Checked:
    """The result of the checks of one candidate.

    Attributes:
        reason: why it is refused; "" for an accepted one.
        answer: the short answer; "" if the text does not answer the question.
        quotes: its quotations, as they stand in the text.
        evidence: the sentence that holds the answer; "" if none does.
        reasoned: the reasoned answer; "" if none was asked for.
        supplied: whether a quotation was supplied that the teacher left out.
    """

    reason: str
    answer: str = ""
    quotes: tuple[str, ...] = ()
    evidence: str = ""
    reasoned: str = ""
    supplied: bool = False


def check(candidate: Candidate) -> Checked:
    """Return the checked question, with its quotations as they stand in the text."""
    reason = next(filter(None, (test(candidate) for test in _TESTS)), "")
    if reason:
        return Checked(reason)
    if candidate.kind == "unanswerable":
        return Checked("")
    return _with_evidence(candidate)


def _question_is_text(candidate: Candidate) -> str:
    question = candidate.draft.question
    if not tokenize(question) or len(question) > LONGEST_QUESTION:
        return "question_no_question"
    # Small models repeat a sentence of the text in its place.
    marked = candidate.language in _WITHOUT_MARKS or any(mark in question for mark in _QUESTION_MARKS)
    return "" if marked else "question_no_question"


def _stands_alone(candidate: Candidate) -> str:
    return "question_not_standalone" if points_at_text(candidate.draft.question, candidate.language) else ""


def _tells_no_source(candidate: Candidate) -> str:
    names = {
        name for chunk in candidate.chunks for name in (chunk.id, chunk.context_id, chunk.source) if name
    }
    shown = f"{candidate.draft.question} {candidate.draft.answer}"
    # What the text itself says is no leak: a manual may name files.
    texts = " ".join(f"{chunk.title} {chunk.text}".casefold() for chunk in candidate.chunks)
    found = named_source(shown, names).casefold()
    return "question_names_its_source" if found and found not in texts else ""


def _same_language(candidate: Candidate) -> str:
    return "wrong_language" if is_other_language(candidate.draft.question, candidate.language) else ""


def _about_text(candidate: Candidate) -> str:
    words = _content_words(candidate.draft.question)
    shown = _content_words(" ".join(f"{chunk.title} {chunk.text}" for chunk in candidate.chunks))
    return "" if len(words & shown) >= _NEAR else "question_not_about_its_text"


def _answer_is_right_kind(candidate: Candidate) -> str:
    answer, kind = candidate.draft.answer, candidate.kind
    words = tokenize(answer)
    held = any(_holds(tokenize(chunk.text), words) for chunk in candidate.chunks)
    if kind == "unanswerable":
        return "answerable_after_all" if held else ""
    if not words:
        return "answer_missing"
    if len(answer) > (LONGEST_FACT if kind == "fact" else LONGEST_ANSWER):
        return "answer_too_long"
    if kind == "fact" and not held:
        return "answer_not_in_text"
    if kind == "fact" and _holds(tokenize(candidate.draft.question), words):
        return "answer_in_question"
    return ""


def _no_personal_data(candidate: Candidate) -> str:
    if not candidate.settings.refuse_personal_data:
        return ""
    shown = f"{candidate.draft.question}\n{candidate.draft.answer}\n{candidate.draft.reasoning}"
    # Eight digits and more in a row of signs, as phones, cards and accounts have; years and prices do not.
    numbers = (re.sub(r"\D", "", found) for found in _DIGITS.findall(shown))
    found = _EMAIL.search(shown) or _IBAN.search(shown) or any(len(number) >= 8 for number in numbers)
    return "personal_data" if found else ""


def _no_refused_words(candidate: Candidate) -> str:
    refused = candidate.settings.refuse_words
    if not refused:
        return ""
    words = tokenize(f"{candidate.draft.question} {candidate.draft.answer} {candidate.draft.reasoning}")
    return "refused_word" if any(_holds(words, tokenize(word)) for word in refused) else ""


#: The cheap ones first; the first reason is counted.
_TESTS: tuple[Callable[[Candidate], str], ...] = (
    _question_is_text,
    _answer_is_right_kind,
    _stands_alone,
    _tells_no_source,
    _about_text,
    _no_personal_data,
    _no_refused_words,
    _same_language,
)


def _with_evidence(candidate: Candidate) -> Checked:
    """Check and complete the quotations of a question that its text answers."""
    draft = candidate.draft
    answer = draft.answer
    reasoning = draft.reasoning
    given = [*draft.quotes, *quotations(reasoning)] if candidate.reasoned else list(draft.quotes)
    found = [_verbatim(quote, candidate.chunks) for quote in given]
    quotes = tuple(dict.fromkeys(quote for quote in found if quote))
    texts = [chunk.text for chunk in candidate.chunks]
    supplied = ""
    if candidate.kind == "fact":
        # The answer stands in the text, so its sentence is known, whatever the teacher quoted.
        supplied = supporting_sentence(texts, [answer], draft.question) or ""
    elif "" in found:
        return Checked("quote_not_verbatim")
    elif not quotes:
        return Checked("quote_missing")
    if candidate.kind == "comparison" and not all(any(quote in text for quote in quotes) for text in texts):
        return Checked("comparison_of_one_text")
    evidence = supplied or _sentence_of(quotes[0] if quotes else "", texts)
    if not candidate.reasoned:
        return Checked("", answer, quotes or (evidence,), evidence, supplied=not quotes)
    if not reasoning:
        return Checked("reasoning_missing")
    if any(_verbatim(quote, candidate.chunks) == "" for quote in quotations(reasoning)):
        return Checked("quote_not_verbatim")
    if ANSWER_MARK in reasoning and not _same_words(final_answer(reasoning), answer):
        return Checked("reasoning_of_another_answer")
    quote = next(
        (quote for quote in quotes if _holds(tokenize(quote), tokenize(answer))), supplied or quotes[0]
    )
    text = _reasoned(reasoning, answer, quote, candidate.chunks)
    return Checked("", answer, quotes or (quote,), evidence, text, supplied=not quotations(reasoning))


def _reasoned(reasoning: str, answer: str, quote: str, chunks: Sequence[Document]) -> str:
    """Return a reasoned answer in RAFT's format: with a quotation, and the short answer at its end."""
    begin = reasoning.rpartition(ANSWER_MARK)[0] if ANSWER_MARK in reasoning else reasoning
    begin = _MARKS.sub(
        lambda found: f"{QUOTE_BEGIN} {_verbatim(found[1], chunks)} {QUOTE_END}", begin.strip()
    )
    if not quotations(begin):
        begin = f"{quote_then_answer(quote, '').partition(ANSWER_MARK)[0].strip()} {begin}"
    return f"{begin.strip()} {ANSWER_MARK} {answer}"


def edited(question: str, answer: str, chunks: Sequence[Document]) -> Checked:
    """Return what a person made of a question. The person decides, so only quotations are looked for.

    Args:
        question: the question.
        answer: the short answer; "" if the text does not answer it.
        chunks: the chunks that it is about.
    """
    if not answer:
        return Checked("")
    evidence = supporting_sentence([chunk.text for chunk in chunks], [answer], question) or ""
    reasoned = quote_then_answer(evidence, answer) if evidence else ""
    return Checked("", answer, (evidence,) if evidence else (), evidence, reasoned)


def _verbatim(quote: str, chunks: Sequence[Document]) -> str:
    """Return a quotation as it stands in one of the texts; "" if none holds it.

    Line breaks, and quotation marks around it, are not counted: models write them as they like.
    """
    words = quote.strip().strip("\"'“”„«»").strip().split()
    if not words:
        return ""
    pattern = re.compile(r"\s+".join(map(re.escape, words)))
    found = (pattern.search(chunk.text) for chunk in chunks)
    return next((match[0] for match in found if match), "")


def _sentence_of(quote: str, texts: Sequence[str]) -> str:
    """Return the whole sentence in which a quotation begins."""
    for text in texts:
        at = text.find(quote) if quote else -1
        if at >= 0:
            return next((text[start:end] for start, end in sentence_spans(text) if start <= at < end), quote)
    return ""


def _content_words(text: str) -> set[str]:
    # A script without blanks has words of one character, all of which count.
    return {word for word in tokenize(text) if len(word) >= _CONTENT_WORD or not word.isascii()}


def _same_words(one: str, other: str) -> bool:
    return tokenize(one) == tokenize(other)


def _holds(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether words contain a run of other words."""
    size = len(wanted)
    return size > 0 and any(words[at : at + size] == wanted for at in range(len(words) - size + 1))
