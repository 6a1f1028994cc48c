"""Instructions as chats: `messages` (OpenAI), `conversations` (ShareGPT), or `prompt` with `completion`.

The last answer of the assistant is taught. The system's message is the instruction; without one, the user's
message is. Earlier turns stand in the prompt, each after the name of its speaker.

Formats: https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.readers.documents.layout_types import FoundInstruction
from retrieval.readers.files.rows import dicts_of, rows
from retrieval.text.values import printed

EXPECTED = "an object with messages, conversations, or prompt and completion"
_FIELDS = ("messages", "conversations", "prompt", "completion", "response", "system", "id", "conversation_id")
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
_TOOL_ROLES = frozenset({"tool", "function", "observation", "function_call"})
_SPEAKERS = {"user": "User", "assistant": "Assistant"}
#: Why a chat is dropped.
NO_ASSISTANT = "instruction_without_output"
NO_TEXT = "instruction_with_tools_or_pictures"


def read_instructions(file: SourceFile) -> Iterator[FoundInstruction]:
    """Read each row as an instruction with the assistant's last answer.

    Raises:
        InputError: a row is broken.
    """
    for where, row, value in rows(file, (), _FIELDS, EXPECTED):
        turns = _turns(value, where)
        if turns is None:
            yield FoundInstruction(where, row, _key(value), dropped=NO_TEXT)
            continue
        system = "\n\n".join(text for role, text in turns if role == "system" and text.strip())
        spoken = [turn for turn in turns if turn[0] != "system"]
        # What follows the last answer is not answered.
        while spoken and spoken[-1][0] != "assistant":
            spoken.pop()
        if len(spoken) < 2 or not spoken[-1][1].strip():
            yield FoundInstruction(where, row, _key(value), dropped=NO_ASSISTANT)
            continue
        *before, (_, output) = spoken
        prompt = before[0][1]
        if len(before) > 1:
            prompt = "\n\n".join(f"{_SPEAKERS[role]}: {text}" for role, text in before)
        instruction, text = (system, prompt) if system else (prompt, "")
        if not instruction.strip():
            yield FoundInstruction(where, row, _key(value), dropped="instruction_without_text")
            continue
        yield FoundInstruction(where, row, _key(value), instruction, text, output)


def _key(row: dict[str, Any]) -> Any:
    return row.get("id") if row.get("id") is not None else row.get("conversation_id")


def _turns(row: dict[str, Any], where: str) -> list[tuple[str, str]] | None:
    """Return the (role, text) of each message of a row, or None if a message is no text."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    field = next((name for name in ("messages", "conversations") if row.get(name) is not None), "")
    if field:
        return _messages([*system, *dicts_of(row[field], field, where)], field, where)
    answer = "completion" if row.get("completion") is not None else "response"
    for name in ("prompt", answer):
        if row.get(name) is None:
            raise InputError(f"{where}: field {name} is missing; expected {EXPECTED}")
    parts = [*system]
    for name, role in (("prompt", "user"), (answer, "assistant")):
        found = row[name]
        parts += found if isinstance(found, list) else [{"role": role, "content": found}]
    return _messages(dicts_of(parts, f"prompt, {answer}", where), f"prompt, {answer}", where)


def _messages(found: list[dict[str, Any]], field: str, where: str) -> list[tuple[str, str]] | None:
    out = []
    for message in found:
        role = message.get("role", message.get("from"))
        known = _ROLES.get(str(role).lower())
        content = message.get("content", message.get("value"))
        if str(role).lower() in _TOOL_ROLES or message.get("tool_calls"):
            return None
        if known is None:
            raise InputError(
                f"{where}: field {field} has the role {role!r:.40}; expected system, user, assistant"
            )
        text = _content(content)
        if text is None:
            return None
        out.append((known, text))
    return out


def _content(value: Any) -> str | None:
    """Return the text of a message, or None if it has other parts."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        return "\n".join(texts) if len(texts) == len(parts) else None
    return "" if value is None else printed(value)
