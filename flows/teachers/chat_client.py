"""A client of servers with OpenAI's chat completions, as vLLM, Ollama, llama.cpp and hosted ones have.

It sends one request and says what came of it. :mod:`flows.teachers.ask_server` decides when to ask again.

API: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_variables, mask
from retrieval.settings.synthesis.question_generation import TeacherSettings

#: Bytes of a reply. The longest answers have a few hundred thousand.
MOST_BYTES = 4_000_000
#: Statuses after which the same request may succeed.
_FOR_NOW = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_SHOWN = 200  # characters of a server's error


@dataclass(frozen=True)
class Reply:
    """A teacher's reply.

    Attributes:
        text: what it wrote.
        finish_reason: why it ended; "length" at the longest answer, "content_filter" for a refusal.
        model: name of the model, as the server gives it.
        prompt_tokens: tokens of the prompt; None if the server does not say.
        answer_tokens: tokens of the answer; None if the server does not say.
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    answer_tokens: int | None


class RequestFailed(Exception):
    """A request without a reply.

    Attributes:
        kind: what happened, for the counts, such as "429" or "connection_cut".
        again: whether the same request may succeed later.
        wait: seconds that the server asks to wait; None if it does not.
        detail: the server's words.
    """

    def __init__(self, kind: str, *, again: bool, wait: float | None = None, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.again, self.wait, self.detail = kind, again, wait, detail


class SchemaRefused(Exception):
    """The server does not take a JSON schema."""


class ChatClient:
    """A client of one server, which several threads may use."""

    def __init__(self, settings: TeacherSettings, key: str | None) -> None:
        """Make the client. Nothing is sent.

        Args:
            settings: the teacher.
            key: the server's key; None sends none.

        Raises:
            InputError: the address is no URL.
        """
        # Here, because a plan needs no client.
        import httpx

        assert settings.base_url is not None
        where = "context.qa.generate.teacher.base_url"

        def missing(name: str) -> InputError:
            return InputError(f"{where}: environment variable {name} is not set")

        self._settings = settings
        self._url = expand_variables(settings.base_url, missing).rstrip("/") + "/chat/completions"
        self._errors = httpx
        if httpx.URL(self._url).scheme not in ("http", "https"):
            raise InputError(f"{where}: expected an address such as http://localhost:8000/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Redirects are not followed: the key would go to another server.
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(settings.timeout_seconds),
            limits=httpx.Limits(max_connections=settings.max_concurrency),
        )

    def close(self) -> None:
        """Close the connections; requests in flight fail."""
        self._http.close()

    def complete(
        self, system: str, user: str, schema: Mapping[str, Any] | None, seed: int, temperature: float
    ) -> Reply:
        """Send one request and return the reply.

        Args:
            system: the system message.
            user: the user message.
            schema: JSON schema of the answer; None for free text.
            seed: seed of the server's draws; not all servers know it.
            temperature: 0 takes the likeliest token.

        Raises:
            RequestFailed: there is no reply.
            SchemaRefused: the server does not take the schema.
            InputError: the server does not know the key or the model.
        """
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": temperature,
            "max_tokens": self._settings.max_answer_tokens,
            "seed": seed,
        }
        if schema is not None:
            named = {"name": "questions", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        status, headers, content = self._post(body)
        if status == 200:
            return _reply(content)
        detail = mask(_error_text(content))
        if status in (400, 415, 422, 501) and schema is not None and _about_schema(detail):
            raise SchemaRefused(detail)
        if status in (401, 403):
            raise InputError(
                f"context.qa.generate.teacher: {self._settings.base_url} refuses the key ({status}: "
                f"{detail}); set api_key_env to the variable that holds it"
            )
        if status == 404 or 300 <= status < 400:
            raise InputError(
                f"context.qa.generate.teacher: {self._settings.base_url} has no model {self._settings.model} "
                f"or no /chat/completions ({status}: {detail}); correct base_url and model"
            )
        again = status in _FOR_NOW or status >= 500
        raise RequestFailed(str(status), again=again, wait=_retry_after(headers), detail=detail)

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and content of a reply of at most `MOST_BYTES`, in at most the timeout."""
        httpx = self._errors
        end = time.monotonic() + self._settings.timeout_seconds
        content = bytearray()
        try:
            with self._http.stream("POST", self._url, json=dict(body)) as response:
                # Piece by piece: a server that writes without end would fill the memory, and one that writes
                # a byte a minute is never silent for long enough.
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > MOST_BYTES:
                        raise RequestFailed("answer_without_end", again=True)
                    if time.monotonic() > end:
                        raise RequestFailed("timeout", again=True)
                return response.status_code, response.headers, bytes(content)
        except httpx.TimeoutException:
            raise RequestFailed("timeout", again=True) from None
        except httpx.ConnectError as error:
            raise RequestFailed("no_connection", again=True, detail=mask(str(error))) from None
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as error:
            raise RequestFailed("connection_cut", again=True, detail=mask(str(error))) from None
        # Of a client that was closed while it waited.
        except RuntimeError as error:
            raise RequestFailed("stopped", again=False, detail=str(error)) from None


def _reply(content: bytes) -> Reply:
    try:
        value = json.loads(content)
        choice = value["choices"][0]
        message = choice["message"]
        usage = value.get("usage") or {}
        refused = message.get("refusal")
        return Reply(
            # Some servers give null for an empty text.
            str(message.get("content") or refused or ""),
            "content_filter" if refused else str(choice.get("finish_reason") or ""),
            str(value.get("model") or ""),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise RequestFailed("no_chat_completion", again=True) from None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _error_text(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(text).get("error")
        text = error["message"] if isinstance(error, dict) else str(error or text)
    except (ValueError, KeyError, AttributeError, RecursionError):
        pass
    return " ".join(str(text).split())[:_SHOWN]


def _about_schema(detail: str) -> bool:
    found = detail.casefold()
    return any(word in found for word in ("response_format", "json_schema", "schema", "grammar", "guided"))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
