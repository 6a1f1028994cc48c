"""What may still be spent on a teacher: tokens and cost, pace, and failures."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable

from retrieval.settings.synthesis.question_generation import TeacherSettings

#: Seconds of the longest wait, of our own and of a server's Retry-After.
LONGEST_BACKOFF, LONGEST_RETRY_AFTER = 60.0, 900.0
#: A prompt may have so many times the tokens that we count, before the teacher has said how many it counts;
#: and afterwards so many times the largest share that was seen.
_UNKNOWN_FACTOR, _MARGIN = 2.0, 1.2


class Budget:
    """The tokens and the cost that are spent and reserved. A request is made only if it surely fits."""

    def __init__(self, settings: TeacherSettings, prompt_tokens: int, answer_tokens: int) -> None:
        """Begin with what earlier runs have spent on the same requests."""
        self._settings = settings
        self._prompts, self._answers = prompt_tokens, answer_tokens
        self._reserved_prompts = self._reserved_answers = 0
        self._largest_share = 0.0
        self._settled = threading.Condition()

    def reserve(self, prompt_tokens: int) -> int | None:
        """Reserve a request with its longest answer.

        Requests in flight mostly use less than is reserved for them, so it waits for them before it says no.

        Returns:
            The reserved tokens of the prompt; None if the request could pass the budget.
        """
        with self._settled:
            while (reserved := self._fitting(prompt_tokens)) is None and self._reserved_answers:
                self._settled.wait()
            if reserved is not None:
                self._reserved_prompts += reserved
                self._reserved_answers += self._settings.max_answer_tokens
            return reserved

    def _fitting(self, prompt_tokens: int) -> int | None:
        settings = self._settings
        factor = self._largest_share * _MARGIN or _UNKNOWN_FACTOR
        reserved = math.ceil(prompt_tokens * factor)
        prompts = self._prompts + self._reserved_prompts + reserved
        answers = self._answers + self._reserved_answers + settings.max_answer_tokens
        if settings.max_tokens is not None and prompts + answers > settings.max_tokens:
            return None
        cost = settings.cost(prompts, answers)
        passes = settings.max_cost is not None and cost is not None and cost > settings.max_cost
        return None if passes else reserved

    def settle(self, reserved: int, expected: int, used: tuple[int, int]) -> None:
        """Replace a reservation by what the request has used.

        Args:
            reserved: what `reserve` returned.
            expected: tokens of the prompt, as we count them.
            used: tokens of the prompt and of the answer, as the teacher counts them; zeros without a reply.
        """
        with self._settled:
            self._reserved_prompts -= reserved
            self._reserved_answers -= self._settings.max_answer_tokens
            self._prompts += used[0]
            self._answers += used[1]
            self._largest_share = max(self._largest_share, used[0] / max(expected, 1))
            self._settled.notify_all()

    @property
    def used(self) -> tuple[int, int]:
        """Tokens of prompts and of answers so far."""
        return self._prompts, self._answers


class Pace:
    """When the next request may be made: so many a minute, and not while the server asks to wait."""

    def __init__(self, per_minute: float | None, wait: Callable[[float], bool]) -> None:
        """Make a pace.

        Args:
            per_minute: requests a minute; None for no limit.
            wait: waits some seconds, and returns True if the work is to end.
        """
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._wait = wait
        self._next = 0.0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Wait for the turn of a request; return False if the work is to end."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        return not self._wait(turn - now)

    def hold(self, seconds: float) -> None:
        """Let no request begin for some seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + min(seconds, LONGEST_RETRY_AFTER))


class Failures:
    """Counts of what went wrong, and whether too much has."""

    def __init__(self, most: int) -> None:
        """Allow so many requests that fail for good."""
        self._most = most
        self._lock = threading.Lock()
        self.retried: Counter[str] = Counter()
        self.final: Counter[str] = Counter()

    def note(self, kind: str, *, final: bool) -> None:
        """Count a failure: one that is tried again, or one for good."""
        with self._lock:
            (self.final if final else self.retried)[kind] += 1

    @property
    def too_many(self) -> bool:
        """Whether more requests have failed for good than may."""
        return sum(self.final.values()) > self._most


def backoff(delay: float, attempt: int, jitter: float) -> float:
    """Return the seconds before a retry: doubling, at most a minute, and spread by up to a half.

    Args:
        delay: seconds before the first retry.
        attempt: number of the retry, from 0.
        jitter: a random number in [0, 1), so that threads do not come back all at once.
    """
    return min(LONGEST_BACKOFF, delay * 2.0 ** min(attempt, 30)) * (1 + jitter / 2)
