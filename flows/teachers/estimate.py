"""What the requests that are still to be made will take: their number, tokens and cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from flows.teachers.answer_store import AnswerStore
from flows.teachers.ask_server import Asked
from retrieval.settings.synthesis.question_generation import QuestionGeneration

#: Tokens of the answer for one question, before any was measured: JSON, question, answer and quotation; and
#: the reasoning beside them.
GUESSED_TOKENS, GUESSED_REASONING = 90, 70


@dataclass(frozen=True)
class Estimate:
    """What a run of the stage would ask for.

    Attributes:
        requests: requests that are not answered yet.
        answered: requests that are.
        questions: questions that the open requests ask for.
        prompt_tokens: tokens of their prompts.
        answer_tokens: tokens of their answers.
        cost: their cost in the currency of the prices; None without prices.
        measured_on: number of this teacher's answers behind the estimate; 0: answers are guessed.
        spent_tokens: tokens that the answered ones have used.
        spent_cost: their cost.
    """

    requests: int
    answered: int
    questions: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None
    measured_on: int
    spent_tokens: int
    spent_cost: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


def estimate(
    requests: Iterable[Asked], settings: QuestionGeneration, reasoned: bool, store: AnswerStore
) -> Estimate:
    """Estimate what the open requests will take, from what the teacher's answers so far have taken.

    Args:
        requests: all requests.
        settings: how questions are made, with the prices.
        reasoned: whether answers come with their reasoning.
        store: the teacher's answers.
    """
    known = store.measured()
    open_requests = answered = prompts = questions = 0
    done: list[str] = []
    for request in requests:
        if store.has(request.id):
            answered += 1
            done.append(request.id)
            continue
        open_requests += 1
        prompts += request.tokens
        questions += settings.questions_per_chunk * len(request.kinds)
    of_question = GUESSED_TOKENS + (GUESSED_REASONING if reasoned else 0)
    factor = 1.0
    if known is not None:
        of_question, factor = known.tokens_of_question, known.prompt_factor
    spent = store.spent(done)
    tokens = round(prompts * factor), round(questions * of_question)
    return Estimate(
        requests=open_requests,
        answered=answered,
        questions=questions,
        prompt_tokens=tokens[0],
        answer_tokens=tokens[1],
        cost=settings.teacher.cost(*tokens),
        measured_on=0 if known is None else known.answers,
        spent_tokens=sum(spent),
        spent_cost=settings.teacher.cost(*spent),
    )


def describe(found: Estimate) -> str:
    """Return an estimate as a line of text."""
    if not found.requests:
        return f"make-questions: all {found.answered:,} requests are answered; nothing is asked"
    cost = "" if found.cost is None else f", cost {found.cost:,.4g}"
    basis = (
        f"measured on {found.measured_on:,} answers of this teacher"
        if found.measured_on
        else "answers are a guess until this teacher has answered some: `jora questions --sample 20`"
    )
    return (
        f"make-questions: {found.requests:,} requests ({found.answered:,} are answered) for "
        f"{found.questions:,} questions, about {found.prompt_tokens:,} tokens of prompts and "
        f"{found.answer_tokens:,} of answers{cost}; {basis}"
    )
