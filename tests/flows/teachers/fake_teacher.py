"""A server with OpenAI's chat completions that answers from the text of the prompt, or fails as it is told.

It counts its requests by prompt, so a test can see that nothing was asked twice.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake-teacher"
_TEXT = re.compile(r"^Text(?: \d)?:\n(.*?)\n\n(?=Text 2:|Write these)", re.DOTALL | re.MULTILINE)
_WANTED = re.compile(r'^- (\d+) of kind "(\w+)"', re.MULTILINE)
_GERMAN = "Wie lautet eigentlich die genaue Bezeichnung für {name}, und warum ist das immer so gewesen, {n}?"


@dataclass
class FakeTeacher:
    """The server's state: how it behaves, and what it has seen.

    Attributes:
        faults: what goes wrong, drawn by seed for each request: name to probability.
        delay: seconds before a reply.
        key: the key that it wants; "" for none.
        schema: whether it takes a JSON schema.
        lengths: whether it takes one with largest lengths of texts.
    """

    faults: dict[str, float] = field(default_factory=dict)
    delay: float = 0.0
    key: str = ""
    schema: bool = True
    lengths: bool = True
    seed: int = 0
    requests: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    seen_faults: Counter[str] = field(default_factory=Counter)
    schemas: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    draws: random.Random = field(default_factory=lambda: random.Random(0))
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def draw(self) -> str:
        """The fault of the next request; "" for none."""
        with self.lock:
            at = self.draws.random()
            for name, share in self.faults.items():
                at -= share
                if at < 0:
                    self.seen_faults[name] += 1
                    return name
        return ""


def answer(user: str, fault: str = "") -> str:
    """What the teacher writes: questions about the first sentences of the text."""
    if fault == "refusal":
        return "I'm sorry, but I cannot help with that."
    if fault == "wrong_json":
        return '{"questions": [{"kind": "fact", "questi'
    texts = _TEXT.findall(user)
    reasoned = '"reasoning"' in user
    made = []
    for count, kind in _WANTED.findall(user):
        sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", texts[0]) if len(s.split()) > 3]
        for number in range(int(count)):
            sentence = sentences[number % len(sentences)]
            words = sentence.rstrip(".!?").split()
            short = " ".join(words[-2:]) if kind == "fact" else sentence
            digest = hashlib.sha256(f"{sentence}{kind}{number}".encode()).hexdigest()
            # Words from the sentence make it a question about the text; those of the digest make it unique.
            code = " ".join(digest[at : at + 5] for at in range(0, 30, 5))
            question = f"What follows after {' '.join(words[:-2])} for {code}?"
            if fault == "wrong_language":
                question = _GERMAN.format(n=code, name=max(words, key=len))
            if fault == "not_standalone":
                question = f"What does the text above say about {' '.join(words[:-2])}?"
            if fault == "not_in_text":
                short = "Zanzibar Republic"
            quotes = [sentence]
            if kind == "comparison":
                second = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", texts[1]) if s.strip()]
                quotes.append(second[-1])
            item = {"kind": kind, "question": question, "answer": short, "quotes": quotes}
            if kind == "unanswerable":
                item |= {"answer": "", "quotes": []}
            if reasoned:
                item["reasoning"] = (
                    f"##begin_quote## {sentence} ##end_quote## This says it. ##Answer: {item['answer']}"
                )
            made.append(item)
    text = json.dumps({"questions": made}, ensure_ascii=False)
    return f"Sure! Here it is:\n```json\n{text}\n```" if fault == "prose_around" else text


def _tokens(text: str) -> int:
    """A rough count that differs from ours: the server's own tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _handler(teacher: FakeTeacher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            shown = {"requests": teacher.requests, "answered": teacher.answered}
            self._send(200, shown)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            user = body["messages"][-1]["content"]
            digest = hashlib.sha256(user.encode()).hexdigest()
            with teacher.lock:
                teacher.requests += 1
                teacher.schemas += "response_format" in body
            if teacher.key and self.headers.get("Authorization") != f"Bearer {teacher.key}":
                self._send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
                return
            if "response_format" in body and not teacher.schema:
                self._send(400, {"error": {"message": "response_format json_schema is not supported"}})
                return
            if "maxLength" in json.dumps(body.get("response_format")) and not teacher.lengths:
                self._send(400, {"error": {"message": "Invalid schema: 'maxLength' is not permitted"}})
                return
            time.sleep(teacher.delay)
            fault = teacher.draw()
            if fault.isdigit():
                waits = {"Retry-After": "0"} if fault == "429" else {}
                # Some servers repeat the key in their errors.
                said = f"status {fault} for {self.headers.get('Authorization')}"
                self._send(int(fault), {"error": {"message": said}}, waits)
                return
            if fault == "cut":
                self._begin(200, 100_000)
                self.wfile.write(b'{"choices": [{"message": {"content": "')
                self.wfile.flush()
                self.close_connection = True
                # Of the socket, because the files of the handler hold it open.
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault == "endless":
                self._endless()
                return
            if fault == "no_completion":
                self._send(200, {"hello": "world"})
                return
            text = answer(user, fault)
            used = _tokens(body["messages"][0]["content"] + user), _tokens(text)
            with teacher.lock:
                teacher.answered[digest] += fault not in ("refusal", "wrong_json")
                teacher.prompt_tokens += used[0]
                teacher.answer_tokens += used[1]
            self._send(
                200,
                {
                    "model": MODEL,
                    "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": used[0], "completion_tokens": used[1]},
                },
            )
            with teacher.lock:
                teacher.done[digest] += fault not in ("refusal", "wrong_json")

        def _endless(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                while True:
                    self.wfile.write(b"and so on " * 10_000)
            except OSError:
                pass

        def _begin(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            for name, value in (more or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def _send(self, status: int, value: Any, more: dict[str, str] | None = None) -> None:
            content = json.dumps(value).encode()
            try:
                self._begin(status, len(content), more)
                self.wfile.write(content)
            except OSError:  # the client is gone
                pass

    return Handler


@contextmanager
def serve(teacher: FakeTeacher, port: int = 0):
    """Run the server in a thread; yield its state, with the port."""
    teacher.draws = random.Random(teacher.seed)
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(teacher))
    server.daemon_threads = True
    teacher.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()
