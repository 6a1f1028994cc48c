"""Conversations: lists of messages with a role and a text, in the forms of OpenAI and of ShareGPT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jora_core.base.errors import InputError
from jora_core.specs.prompts.messages import Message

# Names of a role in ShareGPT files and elsewhere, to the name that chat templates know.
_ROLES = {
    "human": "user",
    "developer": "system",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_KNOWN = ("system", "user", "assistant")


def read_messages(found: Any, where: str) -> list[Message]:
    """Return checked messages with the fields `role` and `content`.

    Args:
        found: a list of objects with role and content, or with from and value.
        where: file and row, for errors.

    Raises:
        InputError: no list, an unknown role, or a message that is no text.
    """
    if not isinstance(found, list | tuple) or not found:
        raise InputError(f"{where}: messages must be a list of objects with role and content")
    messages: list[Message] = []
    for number, message in enumerate(found, 1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise InputError(f"{place}: expected an object with role and content")
        role = str(message.get("role") or message.get("from") or "")
        role = _ROLES.get(role.lower(), role.lower())
        if role not in _KNOWN:
            raise InputError(f"{place}: role {role!r:.40} is not one of {', '.join(_KNOWN)}")
        content = message.get("content", message.get("value"))
        if not isinstance(content, str):
            raise InputError(f"{place}: content must be text, found {type(content).__name__}")
        messages.append({"role": role, "content": content})
    return messages


def has_answer(messages: Sequence[Message]) -> bool:
    """Return whether a conversation has a turn of the assistant, which is what can be taught."""
    return any(message["role"] == "assistant" for message in messages)


def without_oldest(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation without its oldest exchange; an empty one if only one exchange was left.

    An exchange ends with a turn of the assistant. The system message stays.
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    ends = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if len(ends) < 2:
        return []
    return [*messages[:first], *messages[ends[0] + 1 :]]
