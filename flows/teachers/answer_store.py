"""What teachers have answered, in an SQLite file that survives a kill at any moment.

The key of an answer is the digest of the prompt, which holds the chunk, and of what decides the teacher's
text. So a changed document asks again only for its chunks, and no run asks twice for what another one has.
Each answer is one transaction, and is on the disk before the next request is made.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from jora_core.base.digests import json_digest
from jora_core.base.errors import InputError, write_error
from retrieval.synthesis.read_answers import TeacherAnswer

FILE = "answers.sqlite"
#: Seconds that a run waits for another one that writes.
_PATIENCE = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, teacher TEXT NOT NULL, status TEXT NOT NULL,
    text TEXT NOT NULL, model TEXT NOT NULL, created INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    answer_tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS spent (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, teacher TEXT NOT NULL, outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, expected_tokens INTEGER NOT NULL,
    questions INTEGER NOT NULL, created INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS spent_by_key ON spent (key);
"""


@dataclass(frozen=True)
class Usage:
    """The tokens of one reply, beside what was expected.

    Attributes:
        outcome: "ok", or what was wrong with the reply.
        prompt_tokens: tokens of the prompt, as the teacher counts them.
        answer_tokens: tokens of the answer.
        expected_tokens: tokens of the prompt, as we count them.
        questions: number of questions that were asked for.
    """

    outcome: str
    prompt_tokens: int
    answer_tokens: int
    expected_tokens: int
    questions: int


@dataclass(frozen=True)
class Measured:
    """What a teacher's replies so far say about the next ones.

    Attributes:
        answers: number of finished requests behind this.
        prompt_factor: tokens of prompts for each token that we count, repeated requests included.
        tokens_of_question: tokens of answers for each question asked for, repeated requests included.
    """

    answers: int
    prompt_factor: float
    tokens_of_question: float


class AnswerStore:
    """The answers of one teacher. Several threads and several runs may use the file at once."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open the file, and make it if there is none.

        Args:
            folder: folder of the file.
            identity: what decides the teacher's text, as JSON values.

        Raises:
            InputError: the file cannot be opened, or is damaged.
        """
        self.path = folder / FILE
        self.teacher = json_digest(dict(identity))
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        with self._readable():
            # The default journal and full synchronisation: a transaction is on the disk when it returns.
            self._database = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False)
            self._database.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def key(self, request: str) -> str:
        """Return the key of this teacher's answer to a request."""
        return json_digest([request, self.teacher])

    def answers(self, requests: Iterable[str]) -> Iterator[TeacherAnswer]:
        """Yield the stored answers to requests, in the order of the requests."""
        columns = "request, status, text, model, created, prompt_tokens, answer_tokens"
        for request in requests:
            row = self._one(f"SELECT {columns} FROM answers WHERE key = ?", self.key(request))
            if row is not None:
                yield TeacherAnswer(*row)

    def has(self, request: str) -> bool:
        """Return whether a request is answered."""
        return self._one("SELECT 1 FROM answers WHERE key = ?", self.key(request)) is not None

    def spent(self, requests: Iterable[str]) -> tuple[int, int]:
        """Return the tokens of prompts and of answers that requests have used so far, in all runs."""
        prompts = answers = 0
        for request in requests:
            row = self._one(
                "SELECT total(prompt_tokens), total(answer_tokens) FROM spent WHERE key = ?",
                self.key(request),
            )
            prompts += int(row[0])
            answers += int(row[1])
        return prompts, answers

    def measured(self) -> Measured | None:
        """Return what the replies so far say about the next ones; None without a reply."""
        sums = self._one(
            "SELECT total(prompt_tokens), total(answer_tokens) FROM spent WHERE teacher = ?", self.teacher
        )
        # A request that was repeated is one finished request, so it is counted once.
        done = self._one(
            "SELECT count(*), total(expected), total(asked) FROM (SELECT max(expected_tokens) AS expected, "
            "max(questions) AS asked FROM spent WHERE teacher = ? GROUP BY key)",
            self.teacher,
        )
        if not done[0] or not done[1] or not done[2]:
            return None
        return Measured(int(done[0]), sums[0] / done[1], sums[1] / done[2])

    def add(self, answer: TeacherAnswer | None, request: str, usage: Usage) -> None:
        """Store what a reply has used, and the answer if the request is finished, in one transaction.

        Args:
            answer: the answer; None if the request is made again.
            request: id of the request.
            usage: the tokens of the reply.
        """
        key = self.key(request)
        with self._lock, self._readable(), self._database:
            self._database.execute(
                "INSERT INTO spent (key, teacher, outcome, prompt_tokens, answer_tokens, expected_tokens, "
                "questions, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, self.teacher, *vars(usage).values(), int(time.time())),
            )
            if answer is not None:
                # Another run may have asked the same: the first answer stays.
                self._database.execute(
                    "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (key, answer.request, self.teacher, *astuple(answer)[1:]),
                )

    def _one(self, query: str, value: str) -> Any:
        with self._lock, self._readable():
            return self._database.execute(query, (value,)).fetchone()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"{self.path}: {error}; free the file or the disk, or move a damaged file away"
            ) from error
