"""Ask a teacher behind a server: several requests at once, with retries, within budget, each answer stored.

A request is finished when its answer is stored. So a kill loses at most the requests in flight, and the next
run makes the others only.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from flows.engine.errors import StageFailed
from flows.teachers.answer_store import AnswerStore, Usage
from flows.teachers.chat_client import ChatClient, Reply, RequestFailed, SchemaRefused
from flows.teachers.spending import Budget, Failures, Pace, backoff
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.prompts import answer_schema
from retrieval.synthesis.read_answers import TeacherAnswer, is_refusal, usable

#: A repeated request is drawn at this temperature at least: the likeliest text would be the same again.
_REPEATED_TEMPERATURE = 0.5
#: Characters of a token, where a server does not say how many it has used.
_CHARACTERS_OF_TOKEN = 4


@dataclass(frozen=True)
class Asked:
    """One request to a teacher.

    Attributes:
        id: SHA-256 of the prompt.
        system: the system message.
        user: the user message.
        kinds: the kinds of questions that it asks for.
        tokens: number of tokens of the prompt, as we count them.
    """

    id: str
    system: str
    user: str
    kinds: list[Any]
    tokens: int


def ask_server(
    requests: Callable[[], Iterator[Asked]],
    settings: QuestionGeneration,
    reasoned: bool,
    store: AnswerStore,
    key: str | None,
    on_answer: Callable[[], None],
) -> dict[str, Any]:
    """Make all requests that are not answered yet.

    Args:
        requests: returns all requests, each time from the first one.
        settings: how questions are made, and by which teacher.
        reasoned: whether answers come with their reasoning.
        store: the teacher's answers.
        key: the server's key; None sends none.
        on_answer: called in this thread after each finished request.

    Returns:
        Counts of requests, retries and failures.

    Raises:
        InputError: the server does not know the key or the model.
        StageFailed: the budget of failures, of tokens or of cost is spent. What is answered stays.
    """
    budget = Budget(settings.teacher, *store.spent(request.id for request in requests()))
    work = _Work(settings, reasoned, store, ChatClient(settings.teacher, key), budget)
    total = sum(1 for _ in requests())
    pending = (request for request in requests() if not store.has(request.id))
    running: set[Future[None]] = set()
    asked = 0
    pool = ThreadPoolExecutor(settings.teacher.max_concurrency, thread_name_prefix="teacher")
    try:
        for request in pending:
            # A few are ready, so that no thread waits, and not a million of them.
            running.add(pool.submit(work.ask, request))
            if len(running) >= 2 * settings.teacher.max_concurrency:
                running = _finish(running, on_answer)
            asked += 1
            if work.stop.is_set():
                break
        while running:
            running = _finish(running, on_answer)
    finally:
        # After an error or a signal, requests in flight are cut: they may take minutes.
        work.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        work.client.close()
        pool.shutdown(wait=True)
    failures = work.failures
    done = sum(store.has(request.id) for request in requests())
    counts = {
        "requests": total,
        "answered": done,
        "asked": asked,
        "retried": dict(sorted(failures.retried.items())),
        "failed": dict(sorted(failures.final.items())),
        "unreadable": dict(sorted(work.unreadable.items())),
        "structured_output": work.structured,
        "prompt_tokens": budget.used[0],
        "answer_tokens": budget.used[1],
    }
    kept = f"{done:,} of {total:,} requests are answered and kept"
    where = "context.qa.generate.teacher"
    if work.out_of_budget:
        raise StageFailed(
            f"make-questions: the budget is spent ({sum(budget.used):,} tokens); {kept}; raise "
            f"{where}.max_tokens or max_cost, or lower context.qa.generate.max_chunks, and run again"
        )
    if failures.too_many:
        found = ", ".join(f"{count:,} {kind}" for kind, count in sorted(failures.final.items()))
        last = f", the last one: {work.last_failure}" if work.last_failure else ""
        raise StageFailed(
            f"make-questions: more requests failed ({found}{last}) than {where}.max_failures "
            f"({settings.teacher.max_failures}) allows; {kept}; mend the server and run again"
        )
    return counts


def _finish(running: set[Future[None]], on_answer: Callable[[], None]) -> set[Future[None]]:
    """Wait for a request, and return those that still run. Its error is raised here."""
    # With a timeout, because a wait without one would hold back Ctrl-C.
    done, left = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        on_answer()
    return left


class _Work:
    """What the threads share."""

    def __init__(
        self,
        settings: QuestionGeneration,
        reasoned: bool,
        store: AnswerStore,
        client: ChatClient,
        budget: Budget,
    ) -> None:
        self.settings, self.teacher = settings, settings.teacher
        self.reasoned, self.store, self.client, self.budget = reasoned, store, client, budget
        self.stop = threading.Event()
        self.failures = Failures(self.teacher.max_failures)
        self.pace = Pace(self.teacher.requests_per_minute, lambda seconds: self.stop.wait(max(seconds, 0)))
        self.structured = self.teacher.structured_output != "off"
        self.with_lengths = True
        self.unreadable: Counter[str] = Counter()
        self.out_of_budget = False
        self.last_failure = ""

    def ask(self, request: Asked) -> None:
        """Make a request until its answer can be read, or it has failed for good."""
        for attempt in range(self.teacher.answer_attempts):
            try:
                reply = self._reply(request, attempt)
            except RequestFailed as failure:
                if failure.kind != "stopped":
                    self.failures.note(failure.kind, final=True)
                    self.last_failure = str(failure)
                if self.failures.too_many:
                    self.stop.set()
                return
            if reply is None:
                return
            outcome = self._outcome(reply, request)
            last = attempt + 1 == self.teacher.answer_attempts
            self._store(request, reply, outcome, finished=outcome == "ok" or last)
            if outcome == "ok":
                return
            # Stored as it is where it is the last one: it was paid for, and asking again brings the same.
            if last:
                self.unreadable[outcome] += 1
            else:
                self.failures.note(outcome, final=False)

    def _outcome(self, reply: Reply, request: Asked) -> str:
        """Return "ok", or why the reply has no question that can be read."""
        if usable(reply.text, request.kinds):
            return "ok"
        if reply.finish_reason == "content_filter" or is_refusal(reply.text):
            return "refusal"
        return "cut_at_the_longest_answer" if reply.finish_reason == "length" else "no_questions_in_it"

    def _store(self, request: Asked, reply: Reply, outcome: str, *, finished: bool) -> None:
        prompt, answer = self._tokens(request, reply)
        questions = self.settings.questions_per_chunk * len(request.kinds)
        usage = Usage(outcome, prompt, answer, request.tokens, questions)
        stored = TeacherAnswer(request.id, outcome, reply.text, reply.model, int(time.time()), prompt, answer)
        self.store.add(stored if finished else None, request.id, usage)

    def _tokens(self, request: Asked, reply: Reply) -> tuple[int, int]:
        prompt, answer = reply.prompt_tokens, reply.answer_tokens
        guessed = -(-len(reply.text) // _CHARACTERS_OF_TOKEN)
        return request.tokens if prompt is None else prompt, guessed if answer is None else answer

    def _reply(self, request: Asked, repeated: int) -> Reply | None:
        """Return the reply to a request; None if the work is to end.

        Raises:
            RequestFailed: it has failed for good.
        """
        temperature = self.teacher.temperature
        if repeated:
            temperature = max(temperature, _REPEATED_TEMPERATURE)
        retries = 0
        while True:
            reserved = self.budget.reserve(request.tokens)
            if reserved is None:
                self.out_of_budget = True
                self.stop.set()
                return None
            used = (0, 0)
            try:
                # After the reservation, which may have waited for requests that have ended the work.
                if not self.pace.take():
                    return None
                schema, with_lengths = None, self.with_lengths
                if self.structured:
                    schema = answer_schema(
                        request.kinds, self.settings.questions_per_chunk, self.reasoned, with_lengths
                    )
                reply = self.client.complete(
                    request.system, request.user, schema, self.settings.seed + repeated, temperature
                )
                used = self._tokens(request, reply)
                return reply
            except SchemaRefused as refused:
                if with_lengths:
                    # Some servers know schemas and no largest lengths.
                    self.failures.note("schema_with_lengths_refused", final=False)
                    self.with_lengths = False
                    continue
                if self.teacher.structured_output == "on":
                    raise RequestFailed("schema_refused", again=False, detail=str(refused)) from None
                self.failures.note("schema_refused", final=False)
                self.structured = False
            except RequestFailed as failure:
                if not failure.again or retries >= self.teacher.max_retries or self.stop.is_set():
                    raise
                self.failures.note(failure.kind, final=False)
                seconds = backoff(self.teacher.retry_delay_seconds, retries, random.random())
                retries += 1
                if failure.wait is not None:
                    # The server means all of our requests.
                    self.pace.hold(failure.wait)
                elif self.stop.wait(seconds):
                    return None
            finally:
                self.budget.settle(reserved, request.tokens, used)
